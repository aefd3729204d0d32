import type { Bus, Entry, Following } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { type Pass, PassSchema, PassState } from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import { type Invoice, type PassUse, standingOf, type View } from '../domain/invoice.ts'
import { giveBack, lease, newPass, passExpiresAtMs, passIdOf, suspend } from '../domain/pass.ts'
import type { Metrics } from '../metrics.ts'

/** Rounds of compare-and-set against other replicas; each lost one is somebody else's success. */
const ATTEMPTS_MAX = 100

const passes = bucketContract(PassSchema)

/** Id of a pass: what callers send is looked at before it becomes a key. */
const PASS_ID = /^[0-9a-f]{32}$/

/** The bucket `passes`, which only this service writes. */
export class Passes implements AsyncDisposable {
  readonly #bucket
  readonly #metrics: Metrics
  readonly #known = new Map<string, Pass>()
  /** What was last settled, by pass id: false after a suspension was lifted. */
  readonly #suspended = new Map<string, boolean>()
  readonly #queues = new Map<string, Promise<unknown>>()
  #following: Following | undefined

  private constructor(bus: Bus, metrics: Metrics) {
    this.#bucket = bus.bucket(passes)
    this.#metrics = metrics
  }

  static async open(bus: Bus, metrics: Metrics): Promise<Passes> {
    const opened = new Passes(bus, metrics)
    opened.#following = await opened.#bucket.follow({
      snapshot: (entries) => {
        opened.#known.clear()
        for (const { value } of entries.values()) opened.#known.set(value.passId, value)
      },
      change: (key, entry) => (entry === undefined ? opened.#known.delete(key) : opened.#known.set(key, entry.value)),
    })
    return opened
  }

  /** Whether a pass was used up, as far as this replica has heard. */
  use(passId: string): PassUse {
    return this.#known.get(passId)?.state === PassState.EXHAUSTED ? 'used-up' : 'usable'
  }

  /** The pass of a redeemed invoice, made now if a crash left it unmade. */
  async ensure(invoice: Invoice): Promise<Pass> {
    const pass = newPass(invoice)
    const found = await this.#bucket.get(pass.passId)
    if (found !== undefined) return found.value
    try {
      await this.#bucket.create(pass.passId, pass, expiry(pass))
      return pass
    } catch (error) {
      if (!(error instanceof AppError && error.code === 'already_exists')) throw error
      return (await this.#get(pass.passId)).value
    }
  }

  /** Grants a chunk of the quota; 0 if nothing is left or the pass is not in force. Over all replicas never more than the quota. */
  async lease(passId: string, wantedRequests: number): Promise<number> {
    let granted = 0
    await this.#change(passId, (pass) => {
      const leased = lease(pass, wantedRequests)
      granted = leased.granted
      return leased.after
    })
    this.#metrics.leasedRequests.inc(granted)
    return granted
  }

  /** Takes unused requests back, once for each record id. */
  async giveBack(passId: string, unusedRequests: number, recordId: string): Promise<void> {
    await this.#change(passId, (pass) => giveBack(pass, unusedRequests, recordId))
  }

  /** Suspends the pass of a reorganised invoice as long as its payment is not as deep in the chain as it has to be. */
  async settle(invoice: Invoice, view: View): Promise<void> {
    const passId = invoice.redeemed?.passId ?? passIdOf(invoice.id)
    const isSuspended = standingOf(invoice, view).state === 'reorganised'
    if (this.#suspended.get(passId) === isSuspended) return
    await this.#change(passId, (pass) => suspend(pass, isSuspended))
    this.#suspended.set(passId, isSuspended)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#following?.[Symbol.asyncDispose]()
  }

  /** Compare-and-set; changes of one pass in this process go one after the other. A pass that has ended stays as it is. */
  async #change(passId: string, change: (pass: Pass) => Pass | undefined): Promise<void> {
    const changing = (this.#queues.get(passId) ?? Promise.resolve()).then(() => this.#compareAndSet(passId, change))
    const settled = changing.catch(() => undefined)
    this.#queues.set(passId, settled)
    try {
      await changing
    } finally {
      if (this.#queues.get(passId) === settled) this.#queues.delete(passId)
    }
  }

  async #compareAndSet(passId: string, change: (pass: Pass) => Pass | undefined): Promise<void> {
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt += 1) {
      const entry = PASS_ID.test(passId) ? await this.#bucket.get(passId) : undefined
      if (entry === undefined) return
      const after = change(entry.value)
      if (after === undefined) return
      try {
        await this.#bucket.update(passId, after, entry.revision, expiry(after))
        return
      } catch (error) {
        if (!(error instanceof AppError && error.code === 'conflict')) throw error
        this.#metrics.passConflicts.inc()
      }
    }
    throw new AppError('unavailable', 'The pass is changed by too many at once; try again.')
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
