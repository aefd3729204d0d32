import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt'
import type { Bus } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { AttemptsSchema } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { foldedName } from '../../domain/account.ts'
import { type Rate, SIGN_IN_RATES, sourceOf, takeAttempt, withoutAttempt } from '../../domain/attempts.ts'
import type { MasterSecret } from '../master-secret.ts'

const FORMAT = 1

/** Others that may write the same count between; with more than so many at once the attempt is refused. */
const WRITE_ATTEMPTS_MAX = 8

/** After which an attempt that lost against too many others may come again. */
const OUTRUN_RETRY_MS = 1000

const BROWSER_ID_BYTES = 16

/** Who tries to sign in. */
export interface Attempt {
  readonly name: string
  /** 16 bytes. */
  readonly address: Uint8Array
  /** What the browser shows of an earlier sign-in. */
  readonly browser: string | undefined
}

/** An attempt that was counted, or is one too many; `of` says of what. */
export type Counted =
  | { readonly admitted: true; right(): Promise<void> }
  | { readonly admitted: false; readonly retryAfterMs: number; readonly of: 'name' | 'source'; readonly ofHash: string }

/** Counts attempts over all replicas. Every key and every event has keyed hashes of names and addresses only. */
export interface Attempts {
  /** Counts an attempt to sign in before its password is looked at, so that many at once count as many. */
  signIn(attempt: Attempt): Promise<Counted>
  /** Counts what comes from a source (16 bytes). 0: it may go on; otherwise after how many milliseconds to come again. */
  fromSource(what: 'user-code' | 'registration', address: Uint8Array, rate: Rate): Promise<number>
  /** HMAC-SHA-256 of a name, lower-case hexadecimal. */
  nameHash(name: string): string
  /** What a browser is given to show at the next sign-in under this name: then its attempts are counted apart from strangers'. */
  browserOf(name: string): string
}

const attemptsContract = bucketContract(AttemptsSchema)

/** Opens the counting of attempts. */
export function openAttempts({
  bus,
  masterSecret,
  rates = SIGN_IN_RATES,
}: {
  bus: Bus
  masterSecret: MasterSecret
  rates?: Record<keyof typeof SIGN_IN_RATES, Rate>
}): Attempts {
  const bucket = bus.bucket(attemptsContract)
  const [key, ...olderKeys] = masterSecret.deriveAll('attempts')
  const keyed = (what: string, value: string | Uint8Array, using = key) =>
    createHmac('sha256', using).update(`${what}\0`).update(value).digest()
  const keyOf = (what: string, value: string | Uint8Array) => `${what}/${keyed(what, value).toString('base64url')}`

  /** Writes the state that `next` makes of the present one; `next` answers undefined where nothing is to be written. */
  const change = async (
    at: string,
    next: (arrivalMs: number) => number | undefined,
  ): Promise<'written' | 'kept' | 'outrun'> => {
    for (let attempt = 1; attempt <= WRITE_ATTEMPTS_MAX; attempt++) {
      const entry = await bucket.get(at)
      const stored = entry?.value.theoreticalArrival
      const arrivalMs = next(stored ? timestampMs(stored) : 0)
      if (arrivalMs === undefined) return 'kept'
      const value = create(AttemptsSchema, { format: FORMAT, theoreticalArrival: timestampFromMs(arrivalMs) })
      // When its time has come the state says nothing any more.
      const options = { expiresAtMs: Math.max(arrivalMs, Date.now() + 1) }
      try {
        await (entry ? bucket.update(at, value, entry.revision, options) : bucket.create(at, value, options))
        return 'written'
      } catch (error) {
        if (!(error instanceof AppError && (error.code === 'conflict' || error.code === 'already_exists'))) throw error
      }
    }
    return 'outrun'
  }

  /** Takes one attempt. 0: it may go on; otherwise when to come again. */
  const take = async (at: string, rate: Rate): Promise<number> => {
    let retryAfterMs = 0
    const result = await change(at, (arrivalMs) => {
      const taken = takeAttempt(arrivalMs, rate, Date.now())
      retryAfterMs = 'retryAfterMs' in taken ? taken.retryAfterMs : 0
      return 'retryAfterMs' in taken ? undefined : taken.theoreticalArrivalMs
    })
    return result === 'outrun' ? OUTRUN_RETRY_MS : retryAfterMs
  }

  const giveBack = (at: string, rate: Rate) =>
    change(at, (arrivalMs) => (arrivalMs === 0 ? undefined : withoutAttempt(arrivalMs, rate)))

  /** The id of a browser that was given one for this name; undefined: it was not. */
  const knownBrowser = (name: string, shown: string | undefined): string | undefined => {
    const [id = '', seal = ''] = shown?.split('.') ?? []
    const given = Buffer.from(seal, 'base64url')
    const isOurs = [key, ...olderKeys].some((using) => {
      const expected = keyed('browser', `${id}\0${foldedName(name)}`, using)
      return expected.length === given.length && timingSafeEqual(expected, given)
    })
    return isOurs ? id : undefined
  }

  return {
    signIn: async ({ name, address, browser }) => {
      const source = keyOf('source', sourceOf(address))
      const sourceRetryMs = await take(source, rates.source)
      if (sourceRetryMs > 0) return { admitted: false, retryAfterMs: sourceRetryMs, of: 'source', ofHash: source }
      const byName = keyOf('name', foldedName(name))
      const known = knownBrowser(name, browser)
      const counted = known === undefined ? byName : keyOf('browser', known)
      const nameRetryMs = await take(counted, known === undefined ? rates.name : rates.browser)
      if (nameRetryMs > 0) return { admitted: false, retryAfterMs: nameRetryMs, of: 'name', ofHash: counted }
      return {
        admitted: true,
        right: async () => {
          const forgotten = [byName, ...(known === undefined ? [] : [counted])]
          await Promise.all([giveBack(source, rates.source), ...forgotten.map((at) => bucket.remove(at))])
        },
      }
    },

    fromSource: (what, address, rate) => take(keyOf(what, sourceOf(address)), rate),

    nameHash: (name) => keyed('name', foldedName(name)).toString('hex'),

    browserOf: (name) => {
      const id = randomBytes(BROWSER_ID_BYTES).toString('base64url')
      return `${id}.${keyed('browser', `${id}\0${foldedName(name)}`).toString('base64url')}`
    },
  }
}
