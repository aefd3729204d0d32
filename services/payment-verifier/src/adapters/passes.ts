import { randomUUID } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import type { Bus, Entry, Following } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { PassDrawnSchema } from '@tollward/contracts/ledger'
import { type Pass, type PassLease, PassSchema, PassState } from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import { type Invoice, type PassUse, passEndsAtMs, standingOf, type View } from '../domain/invoice.ts'
import {
  drawnFor,
  type Leased,
  type LeaseWish,
  lease,
  newPass,
  passExpiresAtMs,
  passIdOf,
  record,
  servedRequests,
  suspend,
  type UseRecord,
  withoutLapsed,
} from '../domain/pass.ts'
import type { Metrics } from '../metrics.ts'
import type { LedgerBook } from './ledger.ts'

/** Rounds of compare-and-set against other replicas; each lost one is somebody else's success. */
const ATTEMPTS_MAX = 100

/** Passes of a lost bucket that are made at once. */
const REBUILT_AT_ONCE = 64

const passes = bucketContract(PassSchema)

/** Id of a pass: what callers send is looked at before it becomes a key. */
const PASS_ID = /^[0-9a-f]{32}$/

export interface PassesOptions {
  readonly bus: Bus
  readonly book: LedgerBook
  readonly metrics: Metrics
  /** How long a lease lasts unless its holder is heard. */
  readonly leaseLastsMs: number
}

/** What a decision point learns of its lease. */
export interface LeaseTerms {
  readonly lease?: PassLease
  readonly unrecordedRequestsMax: number
}

/** How far a pass is used, as its owner may know it. */
export interface PassUsage {
  readonly requests: number
  /** As far as decision points recorded it. */
  readonly served: number
  /** Requests that a crash of a decision point costs at most. */
  readonly lossBound: number
}

/** The bucket `passes`, which only this service writes. */
export class Passes implements AsyncDisposable {
  readonly #options: PassesOptions
  readonly #bucket
  readonly #known = new Map<string, Pass>()
  /** Whether it was last settled that a pass is suspended, by pass id. */
  readonly #suspended = new Map<string, boolean>()
  readonly #queues = new Map<string, Promise<unknown>>()
  #following: Following | undefined
  #isRebuilt = false

  private constructor(options: PassesOptions) {
    this.#options = options
    this.#bucket = options.bus.bucket(passes)
  }

  static async open(options: PassesOptions): Promise<Passes> {
    const opened = new Passes(options)
    opened.#following = await opened.#bucket.follow({
      snapshot: (entries) => {
        opened.#isRebuilt = false
        opened.#known.clear()
        for (const { value } of entries.values()) opened.#known.set(value.passId, value)
      },
      change: (key, entry) => (entry === undefined ? opened.#known.delete(key) : opened.#known.set(key, entry.value)),
    })
    return opened
  }

  /** Whether a pass was used up, as far as this replica has heard. */
  use(passId: string): PassUse {
    const known = this.#known.get(passId)
    if (known === undefined) return 'usable'
    return withoutLapsed(known, Date.now()).state === PassState.EXHAUSTED ? 'used-up' : 'usable'
  }

  /** How far a pass with a quota was used, as far as this replica has heard; undefined: it is not there, or has no quota. */
  usage(passId: string): PassUsage | undefined {
    const known = this.#known.get(passId)
    if (known === undefined || known.quotaRequests === 0n) return undefined
    return {
      requests: Number(known.quotaRequests),
      served: Number(servedRequests(withoutLapsed(known, Date.now()))),
      lossBound: known.unrecordedRequestsMax,
    }
  }

  /** The pass of a redeemed invoice, made now if a crash left it unmade or the bucket was lost. */
  async ensure(invoice: Invoice): Promise<Pass> {
    const passId = invoice.redeemed?.passId ?? passIdOf(invoice.id)
    const found = await this.#bucket.get(passId)
    if (found !== undefined) return found.value
    const { book } = this.#options
    // Whatever was drawn from a pass that is gone is drawn: another replica may have done so a moment ago.
    await book.reachesEnd()
    return await this.#createOrGet(newPass(invoice, book.ledger.drawnOf(passId)))
  }

  /**
   * Makes again what the bucket lost: passes of redeemed invoices that are not over and whose money nothing is known against. Looks once
   * after each snapshot of the bucket.
   */
  async rebuild(invoices: Iterable<Invoice>, contested: readonly Invoice[]): Promise<void> {
    if (this.#isRebuilt) return
    this.#isRebuilt = true
    const inDoubt = new Set(contested)
    const nowMs = Date.now()
    const isLost = (invoice: Invoice) =>
      invoice.redeemed !== undefined &&
      !this.#known.has(invoice.redeemed.passId) &&
      (passEndsAtMs(invoice) ?? Number.POSITIVE_INFINITY) > nowMs &&
      !inDoubt.has(invoice)
    const lost = [...invoices].filter(isLost)
    try {
      for (let from = 0; from < lost.length; from += REBUILT_AT_ONCE) {
        await Promise.all(lost.slice(from, from + REBUILT_AT_ONCE).map((invoice) => this.ensure(invoice)))
      }
    } catch (error) {
      this.#isRebuilt = false
      throw error
    }
  }

  /** Puts a pass of a back-up where it was, unless one is there that is used. Its leases lapse as if their holders had gone. */
  async restore(pass: Pass): Promise<void> {
    if (!PASS_ID.test(pass.passId)) throw new AppError('invalid_argument', 'The back-up holds a pass without an id.')
    if ((passExpiresAtMs(pass) ?? Number.POSITIVE_INFINITY) <= Date.now()) return
    await this.#createOrGet(pass)
    await this.#change(pass.passId, (there) => (isAsMade(there, pass) ? pass : undefined))
  }

  /** Gives a decision point a chunk of the quota, or more of the one that it holds. Over all replicas never more than the quota. */
  async lease(passId: string, wish: Omit<LeaseWish, 'leaseId'>): Promise<LeaseTerms> {
    const named = { ...wish, leaseId: randomUUID() }
    const { after, lease: own } = await this.#changeLeases(passId, (pass, nowMs) =>
      lease(pass, named, nowMs, this.#options.leaseLastsMs),
    )
    this.#options.metrics.leases.inc({ result: own === undefined ? 'nothing left' : 'granted' })
    return { ...(own && { lease: own }), unrecordedRequestsMax: after?.unrecordedRequestsMax ?? 0 }
  }

  /** Notes what a decision point served of its chunk. False: its lease is over. */
  async record(passId: string, use: UseRecord): Promise<boolean> {
    const { lease: own } = await this.#changeLeases(passId, (pass, nowMs) =>
      record(pass, use, nowMs, this.#options.leaseLastsMs),
    )
    return own !== undefined
  }

  /** Suspends the pass of a reorganised invoice as long as its payment is not as deep in the chain as it has to be. */
  async settle(invoice: Invoice, view: View): Promise<void> {
    const passId = invoice.redeemed?.passId ?? passIdOf(invoice.id)
    const isSuspended = standingOf(invoice, view).state === 'reorganised'
    const known = this.#known.get(passId)
    // A replica that was behind may have changed it since, or the pass was made since.
    const isStill = known === undefined || isSuspended === (known.state === PassState.SUSPENDED)
    if (isStill && this.#suspended.get(passId) === isSuspended) return
    await this.#change(passId, (pass) => suspend(pass, isSuspended))
    this.#suspended.set(passId, isSuspended)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#following?.[Symbol.asyncDispose]()
  }

  async #changeLeases(passId: string, change: (pass: Pass, nowMs: number) => Leased): Promise<Partial<Leased>> {
    let changed: Partial<Leased> = {}
    let assumed = 0n
    await this.#change(passId, (before, nowMs) => {
      const leased = change(before, nowMs)
      changed = leased
      assumed = servedRequests(withoutLapsed(before, nowMs)) - servedRequests(before)
      return leased.after === before ? undefined : leased.after
    })
    this.#options.metrics.assumedRequests.inc(Number(assumed))
    return changed
  }

  /** Compare-and-set; changes of one pass in this process go one after the other. A pass that has ended stays as it is. */
  async #change(passId: string, change: (pass: Pass, nowMs: number) => Pass | undefined): Promise<void> {
    const changing = (this.#queues.get(passId) ?? Promise.resolve()).then(() => this.#compareAndSet(passId, change))
    const settled = changing.catch(() => undefined)
    this.#queues.set(passId, settled)
    try {
      await changing
    } finally {
      if (this.#queues.get(passId) === settled) this.#queues.delete(passId)
    }
  }

  async #compareAndSet(passId: string, change: (pass: Pass, nowMs: number) => Pass | undefined): Promise<void> {
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt += 1) {
      const entry = PASS_ID.test(passId) ? await this.#bucket.get(passId) : undefined
      if (entry === undefined) return
      const changed = change(entry.value, Date.now())
      if (changed === undefined) return
      const after = await this.#drawn(changed)
      try {
        await this.#bucket.update(passId, after, entry.revision, expiry(after))
        return
      } catch (error) {
        if (!(error instanceof AppError && error.code === 'conflict')) throw error
        this.#options.metrics.passConflicts.inc()
      }
    }
    throw new AppError('unavailable', 'The pass is changed by too many at once; try again.')
  }

  /** The pass when the ledger allows what is leased of it. */
  async #drawn(pass: Pass): Promise<Pass> {
    const drawnRequests = drawnFor(pass)
    if (drawnRequests === pass.drawnRequests) return pass
    const { passId, invoiceId } = pass
    const value = create(PassDrawnSchema, { passId, invoiceId, drawnRequests })
    await this.#options.book.write((ledger) =>
      ledger.drawnOf(passId) >= drawnRequests ? undefined : { case: 'passDrawn', value },
    )
    return { ...pass, drawnRequests }
  }

  async #createOrGet(pass: Pass): Promise<Pass> {
    try {
      await this.#bucket.create(pass.passId, pass, expiry(pass))
      return pass
    } catch (error) {
      if (!(error instanceof AppError && error.code === 'already_exists')) throw error
      return (await this.#get(pass.passId)).value
    }
  }

  async #get(passId: string): Promise<Entry<Pass>> {
    const entry = await this.#bucket.get(passId)
    if (entry === undefined) throw new AppError('unavailable', 'The pass is not there yet; try again in a moment.')
    return entry
  }
}

function expiry(pass: Pass): { expiresAtMs?: number } {
  const expiresAtMs = passExpiresAtMs(pass)
  return expiresAtMs === undefined ? {} : { expiresAtMs }
}

/**
 * Whether a pass was made from the ledger and nothing was leased of it since: the ledger tells only in steps what was drawn, and the
 * back-up how much of that.
 */
function isAsMade({ leases, leasedRequests, drawnRequests }: Pass, backedUp: Pass): boolean {
  const isUntouched = leases.length === 0 && leasedRequests === drawnRequests
  return isUntouched && drawnRequests === backedUp.drawnRequests && backedUp.leasedRequests < leasedRequests
}
