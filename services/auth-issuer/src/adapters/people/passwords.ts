import { randomBytes, scrypt, timingSafeEqual } from 'node:crypto'
import { AppError } from '@tollward/errors'
import {
  canonicalPassword,
  formatPasswordHash,
  isMadeWith,
  parsePasswordHash,
  SCRYPT_PARAMETERS,
  type ScryptParameters,
} from '../../domain/password.ts'
import type { IssuerMetrics } from '../../metrics.ts'

/** Each takes 128 MiB while it runs. */
const HASHES_AT_ONCE_MAX = 2

/** Who waits for a hash; with more the last would wait for longer than a browser does. */
const WAITING_MAX = 50

const SALT_BYTES = 16
const HASH_BYTES = 32

/** 144 bits, as text without look-alikes at the end of a line. */
const MADE_PASSWORD_BYTES = 18

/** Hashes passwords, few at once. AppError `unavailable` where too many wait already. */
export interface Passwords {
  /** In PHC string format, with a new salt. */
  hash(password: string): Promise<string>
  /** Whether this is the password. Without a hash the same work is done, and the answer is no. */
  verify(password: string, stored: string | undefined): Promise<boolean>
  /** Whether a hash should be made anew at the next chance, because the parameters were changed. */
  isOutdated(stored: string): boolean
}

/** A password that nobody chose. */
export function makePassword(): string {
  return randomBytes(MADE_PASSWORD_BYTES).toString('base64url')
}

/** Opens the hashing of passwords. */
export function openPasswords(metrics: IssuerMetrics, parameters: ScryptParameters = SCRYPT_PARAMETERS): Passwords {
  const atOnce = boundedAtOnce(HASHES_AT_ONCE_MAX, WAITING_MAX)
  const derive = (password: string, salt: Uint8Array, length: number, using: ScryptParameters) =>
    atOnce(() => {
      metrics.passwordHashes.inc()
      return deriveScrypt(canonicalPassword(password), salt, length, using)
    })

  return {
    hash: async (password) => {
      const salt = randomBytes(SALT_BYTES)
      return formatPasswordHash({ parameters, salt, hash: await derive(password, salt, HASH_BYTES, parameters) })
    },

    verify: async (password, stored) => {
      if (stored === undefined) {
        await derive(password, randomBytes(SALT_BYTES), HASH_BYTES, parameters)
        return false
      }
      const expected = parsePasswordHash(stored)
      if (!expected) throw new AppError('internal', 'A stored password cannot be read by this version.')
      const given = await derive(password, expected.salt, expected.hash.length, expected.parameters)
      return timingSafeEqual(given, expected.hash)
    },

    isOutdated: (stored) => {
      const made = parsePasswordHash(stored)
      return made !== undefined && !isMadeWith(made, parameters)
    },
  }
}

function deriveScrypt(
  password: string,
  salt: Uint8Array,
  length: number,
  { ln, r, p }: ScryptParameters,
): Promise<Buffer> {
  const cost = 2 ** ln
  // Node refuses what may need more; OpenSSL counts some blocks beside the 128 * N * r bytes.
  const maxmem = 128 * r * (cost + p + 2)
  return new Promise((resolve, reject) => {
    scrypt(password, salt, length, { cost, blockSize: r, parallelization: p, maxmem }, (error, key) =>
      error ? reject(error) : resolve(key),
    )
  })
}

/** Runs work, so many at once; the others wait their turn, and beyond the bound are refused. */
function boundedAtOnce(atOnceMax: number, waitingMax: number): <T>(work: () => Promise<T>) => Promise<T> {
  let running = 0
  const waiting: (() => void)[] = []
  return async (work) => {
    if (running >= atOnceMax) {
      if (waiting.length >= waitingMax) {
        throw new AppError('unavailable', 'Too many people are signing in at this moment; try again in a minute.')
      }
      await new Promise<void>((resolve) => waiting.push(resolve))
    } else {
      running += 1
    }
    try {
      return await work()
    } finally {
      // Whoever waits takes over this place.
      const next = waiting.shift()
      if (next) next()
      else running -= 1
    }
  }
}
