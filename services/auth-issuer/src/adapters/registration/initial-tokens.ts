import { hash, randomBytes } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import type { Bus } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { StoredInitialAccessTokenSchema } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import type { Terms } from '../../domain/registration.ts'
import { storedTerms, termsOf } from './registrations.ts'

const FORMAT = 1
const TOKEN_BYTES = 32

/** Registrations with one token that may come between before we give up. */
const WRITE_ATTEMPTS_MAX = 20

/** Initial access tokens (RFC 7591, section 3): leave to register clients. */
export interface InitialTokens {
  /** Makes one; it is shown this once. */
  create(terms: Terms, registrations: number, expiresAtMs: number): Promise<string>
  /** What may be registered with it; undefined: nothing. */
  find(token: string): Promise<Terms | undefined>
  /** Takes one registration from it. False: none is left. */
  take(token: string): Promise<boolean>
}

const tokensContract = bucketContract(StoredInitialAccessTokenSchema)

/** Opens them. */
export function openInitialTokens(bus: Bus): InitialTokens {
  const tokens = bus.bucket(tokensContract)

  const read = async (token: string) => {
    const entry = await tokens.get(keyOf(token))
    if (!entry) return undefined
    if (entry.value.format !== FORMAT) {
      throw new AppError('internal', 'This token is stored in a format that this version cannot read.')
    }
    return entry
  }

  return {
    create: async (terms, registrations, expiresAtMs) => {
      const token = randomBytes(TOKEN_BYTES).toString('base64url')
      const value = create(StoredInitialAccessTokenSchema, {
        format: FORMAT,
        terms: storedTerms(terms),
        registrationsLeft: registrations,
      })
      await tokens.create(keyOf(token), value, { expiresAtMs })
      return token
    },

    find: async (token) => {
      const entry = await read(token)
      return entry && termsOf(entry.value.terms)
    },

    take: async (token) => {
      for (let attempt = 1; ; attempt++) {
        const entry = await read(token)
        if (!entry) return false
        const { key, revision, expiresAtMs } = entry
        const registrationsLeft = entry.value.registrationsLeft - 1
        try {
          if (registrationsLeft > 0) {
            const value = create(StoredInitialAccessTokenSchema, { ...entry.value, registrationsLeft })
            await tokens.update(key, value, revision, expiresAtMs === undefined ? {} : { expiresAtMs })
          } else {
            await tokens.remove(key, { revision })
          }
          return true
        } catch (error) {
          const outrun = error instanceof AppError && error.code === 'conflict'
          if (!outrun || attempt === WRITE_ATTEMPTS_MAX) throw error
        }
      }
    },
  }
}

function keyOf(token: string): string {
  return hash('sha256', token, 'base64url')
}
