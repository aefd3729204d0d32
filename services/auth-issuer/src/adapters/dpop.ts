import { hash } from 'node:crypto'
import type { Bus } from '@tollward/bus'
import { AppError } from '@tollward/errors'
import { decodeJwt } from 'jose'
import { errors, Provider } from 'oidc-provider'
import type { ProviderPart } from './compose.ts'
import type { MasterSecret } from './master-secret.ts'

/** Format of what is kept of something that was used: one byte says that it was. */
const USED = Uint8Array.of(1)

/** What may be used once only, over all replicas. */
export interface Replays {
  /** Whether this is the first use of `jti` by `user`. It is remembered until `expSeconds`, seconds since the epoch. */
  unique(user: string, jti: string, expSeconds: number): Promise<boolean>
}

/** Opens the memory of used assertions and proofs. Whoever writes first was first; nobody else is asked. */
export function openReplays(bus: Pick<Bus, 'rawBucket'>): Replays {
  const bucket = bus.rawBucket('oidc-ReplayDetection')
  return {
    unique: async (user, jti, expSeconds) => {
      const key = hash('sha256', JSON.stringify([user, jti]), 'base64url')
      try {
        await bucket.create(key, USED, { expiresAtMs: expSeconds * 1000 })
        return true
      } catch (error) {
        if (error instanceof AppError && error.code === 'already_exists') return false
        throw error
      }
    },
  }
}

/** Tokens that are bound to a key of their client (RFC 9449): each proof has a nonce of ours, and is good once. */
export function dpopPart(masterSecret: Pick<MasterSecret, 'derive'>, replays: Replays): ProviderPart {
  return {
    configuration: {
      enabledJWA: { dPoPSigningAlgValues: ['ES256', 'EdDSA', 'Ed25519'] },
      features: {
        dPoP: {
          enabled: true,
          nonceSecret: masterSecret.derive('dpopNonces'),
          requireNonce: () => true,
          allowReplay: false,
        },
      },
    },
    install: (provider) => {
      // Its own way is to look and then to write, between which another replica does the same.
      provider.ReplayDetection.unique = async (user: string, jti: string, expSeconds: number) => {
        if (await replays.unique(user, jti, expSeconds)) return true
        // Its own word is invalid_grant; RFC 9449, section 5 has one for proofs.
        if (isProof(jti)) throw new errors.InvalidDpopProof('DPoP proof was used before')
        return false
      }
    },
  }
}

/** Whether this is the `jti` of the proof of the request under way, which was verified before it is looked up. */
function isProof(jti: string): boolean {
  const proof = Provider.ctx?.req.headers.dpop
  return typeof proof === 'string' && decodeJwt(proof).jti === jti
}
