import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Bucket, Bus, Entry, Following } from '@tollward/bus'
import { bucketContract, contract } from '@tollward/contracts'
import { KeyChange, KeyRotatedSchema, type StoredSigningKey, StoredSigningKeySchema } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { importJWK, SignJWT } from 'jose'
import type { Logger } from 'pino'
import {
  KEY_ALGORITHMS,
  type KeyAlgorithm,
  type RingKey,
  type RingState,
  type RingTask,
  type RingTimes,
  ringAt,
  rotationNow,
} from '../../domain/key-ring.ts'
import type { InternalClaims } from '../../domain/token.ts'
import type { IssuerMetrics } from '../../metrics.ts'
import type { MasterSecret } from '../master-secret.ts'
import { openSleeper } from './sleeper.ts'
import { makeKey, openedKey, type PrivateJwk, placeOf, ringKeyOf, sealedKey } from './stored-key.ts'

/** A key is published for so many max-ages of the key set before it signs: one for copies, one for late news and clocks that differ. */
const LEAD_MAX_AGES = 2

/** The bus is heard every second; a shorter silence says nothing. */
const SILENCE_MIN_MS = 2_500

/** After a failure, such as a bus that is gone. */
const RETRY_MS = 1000

/** The clock is looked at again after this long at the latest, because somebody may set it. */
const LOOK_AGAIN_MS = 60_000

/** Inside tokens and introspection answers are signed with this: every verifier knows it. */
const INTERNAL_ALGORITHM: KeyAlgorithm = 'ES256'

const keyRotated = contract(KeyRotatedSchema)
const keysContract = bucketContract(StoredSigningKeySchema)

export interface KeyRingOptions {
  readonly bus: Pick<Bus, 'bucket' | 'publish'>
  readonly masterSecret: MasterSecret
  /** How long a key signs until the next one does. */
  readonly rotationIntervalMs: number
  /** How long verifiers may keep the published keys without asking again. */
  readonly maxAgeMs: number
  /** How long a key is published after it signed for the last time: longer than any token that it signed lives. */
  readonly retentionMs: number
  readonly metrics: Pick<IssuerMetrics, 'keyChanges' | 'signingSince'>
  readonly log: Logger
}

/**
 * Opens the keys that sign tokens: the same on every replica, which all follow one bucket and switch by their clocks. Resolves
 * when there is a key of each algorithm. AppError `failed_precondition`: the stored keys cannot be read with this master secret.
 */
export async function openKeyRing(options: KeyRingOptions): Promise<KeyRing> {
  const ring = new KeyRing(options)
  await ring.open()
  return ring
}

/**
 * Makes the first keys, publishes successors in time, lets the clock decide which key signs, and removes what is over. Each of
 * these is one compare-and-set that any replica may win, so that none leads and each can end at any moment.
 */
class KeyRing implements AsyncDisposable {
  /** How long keys live. */
  readonly times: RingTimes
  readonly #options: KeyRingOptions
  readonly #bucket: Bucket<StoredSigningKey>
  readonly #entries = new Map<string, Entry<StoredSigningKey>>()
  /** By encrypted key; undefined: it cannot be decrypted. */
  readonly #opened = new Map<string, PrivateJwk | undefined>()
  readonly #announced = new Set<string>()
  readonly #listeners: (() => void)[] = []
  readonly #sleeper = openSleeper()
  readonly #ready = Promise.withResolvers<void>()
  #current: { readonly jwks: PrivateJwk[]; readonly kid: string; readonly signer: SigningKey } | undefined
  #fault: string | undefined
  #following: Following | undefined
  #turning: Promise<void> | undefined
  #closed = false

  constructor(options: KeyRingOptions) {
    this.#options = options
    this.#bucket = options.bus.bucket(keysContract)
    this.times = {
      rotationIntervalMs: options.rotationIntervalMs,
      leadMs: LEAD_MAX_AGES * options.maxAgeMs,
      retentionMs: options.retentionMs,
    }
  }

  async open(): Promise<void> {
    this.#following = await this.#bucket.follow({
      snapshot: (entries) => {
        this.#entries.clear()
        for (const [key, entry] of entries) this.#entries.set(key, entry)
        this.#sleeper.wake()
      },
      change: (key, entry) => {
        if (entry) this.#entries.set(key, entry)
        else this.#entries.delete(key)
        this.#sleeper.wake()
      },
    })
    this.#turning = this.#keepTurning()
    try {
      await this.#ready.promise
    } catch (error) {
      await this[Symbol.asyncDispose]()
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true
    this.#sleeper.wake()
    await this.#following?.[Symbol.asyncDispose]()
    await this.#turning
  }

  /** Private keys as oidc-provider takes them: those that sign first, then those that are only published. */
  jwks(): { keys: PrivateJwk[] } {
    return { keys: this.#inForce().jwks }
  }

  /** How long verifiers may keep the published keys now, in seconds. 0: this replica has not heard of the keys for too long. */
  maxAgeSeconds(): number {
    const { maxAgeMs } = this.#options
    const silentForMs = this.#following?.silentForMs ?? 0
    return silentForMs > Math.max(SILENCE_MIN_MS, maxAgeMs / 2) ? 0 : Math.floor(maxAgeMs / 1000)
  }

  /** Calls the listener after each change of `jwks()`. */
  onChange(listener: () => void): void {
    this.#listeners.push(listener)
  }

  /** Why this replica should not serve; undefined: it can. */
  fault(): string | undefined {
    return this.#fault
  }

  /** Every key that is there. */
  keys(): RingKey[] {
    return [...this.#entries.values()].map((entry) => ringKeyOf(entry, true))
  }

  /** Publishes a successor of each algorithm's key, unless one is on its way already. Returns every key that is there then. */
  async rotate(): Promise<RingKey[]> {
    for (const algorithm of KEY_ALGORITHMS) {
      const task = rotationNow(this.keys(), algorithm, Date.now(), this.times)
      if (task) await this.#publishKey(task)
    }
    return this.keys()
  }

  /** Signs an internal token: a JWT of type at+jwt (RFC 9068). */
  mint(claims: InternalClaims): Promise<string> {
    return this.#sign(claims, 'at+jwt')
  }

  /** Signs an introspection answer: a JWT of type token-introspection+jwt (RFC 9701, section 5). */
  signIntrospection(claims: { iss: string; aud: string; iat: number; token_introspection: unknown }): Promise<string> {
    return this.#sign(claims, 'token-introspection+jwt')
  }

  #sign(claims: object, typ: string): Promise<string> {
    const { kid, signer } = this.#inForce()
    return new SignJWT({ ...claims }).setProtectedHeader({ alg: INTERNAL_ALGORITHM, typ, kid }).sign(signer)
  }

  #inForce() {
    if (!this.#current) throw new AppError('unavailable', 'There is no signing key yet; try again in a second.')
    return this.#current
  }

  async #keepTurning(): Promise<void> {
    while (!this.#closed) {
      let pauseMs = RETRY_MS
      try {
        pauseMs = await this.#turn()
      } catch (error) {
        if (error instanceof AppError && error.code === 'failed_precondition') this.#fault = error.message
        this.#options.log.warn({ err: error }, 'the signing keys could not be looked after; trying again')
      }
      if (this.#current) this.#ready.resolve()
      else if (this.#fault) this.#ready.reject(new AppError('failed_precondition', this.#fault))
      await this.#sleeper.sleep(this.#closed ? 0 : pauseMs)
    }
  }

  /** One look at the keys and the clock. Returns when to look again, in milliseconds. */
  async #turn(): Promise<number> {
    const keys = await this.#readKeys()
    const unreadable = keys.find((key) => !key.readable)
    this.#fault = unreadable && cannotDecrypt(unreadable)
    const state = ringAt(keys, Date.now(), this.times)
    await this.#adopt(state)
    if (unreadable && !this.#current) return LOOK_AGAIN_MS
    for (const key of keys) {
      if (this.#announced.has(key.kid) || key.signsFromMs <= Date.now()) continue
      await this.#announce(key, 'PUBLISHED', key.createdAtMs)
      this.#announced.add(key.kid)
    }
    for (const task of state.tasks) {
      if (task.do === 'publish') await this.#publishKey(task)
      else if (task.do === 'retire') await this.#retireKey(task)
      else await this.#removeKey(task)
    }
    // What was done comes back as a change; if it does not, it is looked at again.
    return state.tasks.length > 0 ? RETRY_MS : Math.min(state.nextAtMs - Date.now(), LOOK_AGAIN_MS)
  }

  async #readKeys(): Promise<RingKey[]> {
    const secrets = this.#options.masterSecret.deriveAll('signingKeys')
    const keys: RingKey[] = []
    for (const entry of [...this.#entries.values()]) {
      const sealed = entry.value.encryptedPrivateJwk
      if (!this.#opened.has(sealed)) this.#opened.set(sealed, await openedKey(entry.value, secrets))
      keys.push(ringKeyOf(entry, this.#opened.get(sealed) !== undefined))
    }
    const present = new Set([...this.#entries.values()].map(({ value }) => value.encryptedPrivateJwk))
    for (const sealed of this.#opened.keys()) if (!present.has(sealed)) this.#opened.delete(sealed)
    return keys
  }

  /** Signs with what the ring says from now on, if that is something else than before. */
  async #adopt({ signing, published }: RingState): Promise<void> {
    const jwkOf = new Map([...this.#opened.values()].flatMap((jwk) => (jwk ? [[jwk.kid, jwk] as const] : [])))
    const jwks = published.flatMap(({ kid }) => jwkOf.get(kid) ?? [])
    const internal = jwkOf.get(signing.get(INTERNAL_ALGORITHM)?.kid ?? '')
    if (!internal || signing.size < KEY_ALGORITHMS.length) return
    const before = this.#current?.jwks ?? []
    if (before.length === jwks.length && before.every(({ kid }, index) => kid === jwks[index]?.kid)) return
    this.#current = { jwks, kid: internal.kid, signer: await importJWK(internal, internal.alg) }
    const { metrics, log } = this.#options
    for (const { algorithm, signsFromMs } of signing.values())
      metrics.signingSince.set({ algorithm }, signsFromMs / 1000)
    log.info({ signing: [...signing.values()].map(({ kid }) => kid), published: jwks.length }, 'signing keys')
    for (const listener of this.#listeners) listener()
  }

  async #publishKey({ algorithm, number, signsFromMs }: Extract<RingTask, { do: 'publish' }>): Promise<void> {
    const jwk = await makeKey(algorithm)
    const nowMs = Date.now()
    const place = placeOf({ algorithm, number })
    const value = await sealedKey(jwk, signsFromMs, nowMs, this.#options.masterSecret.derive('signingKeys'))
    try {
      const revision = await this.#bucket.create(place, value)
      this.#entries.set(place, { key: place, value, revision })
    } catch (error) {
      if (!(error instanceof AppError && error.code === 'already_exists')) throw error
      // Another replica made it, and this one has not heard yet.
      const made = await this.#bucket.get(place)
      if (made) this.#entries.set(place, made)
      return
    }
    // One that signs later is announced by whoever sees it first.
    if (signsFromMs > nowMs) return
    await this.#announce({ kid: jwk.kid, algorithm }, 'PUBLISHED', nowMs)
    await this.#announce({ kid: jwk.kid, algorithm }, 'ACTIVATED', signsFromMs)
  }

  async #retireKey({ key, successor, life }: Extract<RingTask, { do: 'retire' }>): Promise<void> {
    const entry = this.#entries.get(placeOf(key))
    if (!entry) return
    // The events first, since they can be told apart by their ids; then the note that they are out.
    await this.#announce(successor, 'ACTIVATED', life.signsUntilMs)
    await this.#announce(key, 'RETIRED', life.signsUntilMs)
    const signsUntil = timestampFromMs(life.signsUntilMs)
    const removedAt = timestampFromMs(life.removedAtMs)
    const value = create(StoredSigningKeySchema, { ...entry.value, signsUntil, removedAt })
    await this.#bucket.update(entry.key, value, entry.revision).catch(ignoreConflict)
  }

  async #removeKey({ key }: Extract<RingTask, { do: 'remove' }>): Promise<void> {
    const entry = this.#entries.get(placeOf(key))
    if (!entry) return
    await this.#announce(key, 'REMOVED', Date.now())
    await this.#bucket.remove(entry.key, { revision: entry.revision }).catch(ignoreConflict)
  }

  /** Every replica may say it, and each again after a failure: by its id it is one event. */
  async #announce(
    { kid, algorithm }: Pick<RingKey, 'kid' | 'algorithm'>,
    change: Exclude<keyof typeof KeyChange, 'UNSPECIFIED'>,
    changedAtMs: number,
  ): Promise<void> {
    const changedAt = timestampFromMs(changedAtMs)
    const event = create(KeyRotatedSchema, { kid, algorithm, change: KeyChange[change], changedAt })
    const { duplicate } = await this.#options.bus.publish(keyRotated, event, { id: `key.${change}.${kid}` })
    if (!duplicate) this.#options.metrics.keyChanges.inc({ change: change.toLowerCase() })
  }
}

export type { KeyRing }

type SigningKey = Awaited<ReturnType<typeof importJWK>>

function cannotDecrypt({ kid }: RingKey): string {
  return `The signing key ${kid} cannot be decrypted; add the master secret that it was made under as a further line of its file.`
}

/** Whoever was faster did the same. */
function ignoreConflict(error: unknown): void {
  if (!(error instanceof AppError && error.code === 'conflict')) throw error
}
