import { hash } from 'node:crypto'
import { type CryptoKey, decodeProtectedHeader, importJWK, type JWK, type JWTPayload, jwtVerify } from 'jose'
import { PROOF_ALGORITHMS } from '../domain/answer.ts'
import { BoundedMap } from '../domain/bounded-map.ts'
import type { MaybePromise } from '../domain/judge.ts'
import {
  type Binding,
  type CheckProof,
  type PossessionFault,
  type Presented,
  provePossession,
} from '../domain/possession.ts'
import { ReplayTable } from '../domain/replay-table.ts'
import { canonicalUri } from '../domain/target.ts'
import { PROOF_AGE_MAX_MS, PROOF_AHEAD_MAX_MS, PROOF_KEYS_MAX, PROOFS_MAX } from '../edges.ts'

/** Leading bytes of a SHA-256 by which a used proof is remembered: no two proofs share them, by chance or on purpose. */
const PROOF_ID_BYTES = 16

/** Whether whoever presents a token has the key that it is bound to; see provePossession. */
export interface Possession {
  /** Proofs that are remembered as used. */
  readonly size: number
  prove(binding: Binding | undefined, presented: Presented): MaybePromise<PossessionFault | undefined>
}

/** Opens the check of bound tokens. It takes each DPoP proof once; the memory of it is this process's own. */
export function openPossession(): Possession {
  const proofs = openProofs()
  return {
    get size() {
      return proofs.size
    },
    prove: (binding, presented) => provePossession(binding, presented, proofs.check),
  }
}

/** Makes a check of DPoP proofs (RFC 9449, 4.3) that takes each proof once. */
export function openProofs(): { readonly check: CheckProof; readonly size: number } {
  const used = new ReplayTable({ windowMs: PROOF_AGE_MAX_MS + PROOF_AHEAD_MAX_MS, idsMax: PROOFS_MAX })
  // A key that had to go is read again from its next proof: nothing is lost but time.
  const keys = new BoundedMap<string, CryptoKey | Uint8Array>(PROOF_KEYS_MAX, () => {})
  return {
    get size() {
      return used.size
    },
    check: async (proof, expected) => {
      const payload = await verified(proof, expected.thumbprint, keys)
      if (typeof payload === 'string') return invalid(payload)
      const nowMs = Date.now()
      const wrong = wrongClaim(payload, expected, nowMs)
      if (wrong !== undefined) return invalid(wrong)
      // Last, so that nothing but a proof that is right takes room.
      const taken = used.take(proofId(expected.thumbprint, String(payload.jti)), nowMs)
      if (taken === 'used') return invalid('This DPoP proof was used before; make a new one for each request.')
      return taken === 'full' ? { reason: 'unavailable' } : undefined
    },
  }
}

/** The claims of a proof that was signed by the key with this thumbprint; else what is wrong with it. */
async function verified(
  proof: string,
  thumbprint: string,
  keys: BoundedMap<string, CryptoKey | Uint8Array>,
): Promise<JWTPayload | string> {
  try {
    const { jwk, alg } = decodeProtectedHeader(proof)
    if (!jwk) return 'The DPoP proof has no public key in its header.'
    if ('d' in jwk)
      return 'The DPoP proof has a private key in its header: take another one, this is not yours alone any more.'
    // Before the signature, which costs more: a thief has another key.
    if (thumbprintOf(jwk) !== thumbprint) {
      return 'The DPoP proof was signed by another key than the one that this token is bound to.'
    }
    const key = keys.get(thumbprint) ?? (await importJWK(jwk, alg))
    const { payload } = await jwtVerify(proof, key, { typ: 'dpop+jwt', algorithms: [...PROOF_ALGORITHMS] })
    keys.set(thumbprint, key)
    return payload
  } catch {
    // Whatever the library or the key's import did not like about it, it proves nothing.
    return 'The DPoP proof is not a JWT of type dpop+jwt, signed with ES256 or EdDSA by the public key in its header.'
  }
}

/** RFC 7638 for the kinds of keys that sign proofs here, at once; undefined for others. */
function thumbprintOf({ kty, crv, x, y }: JWK): string | undefined {
  if (kty === 'EC') return hash('sha256', JSON.stringify({ crv, kty, x, y }), 'base64url')
  return kty === 'OKP' ? hash('sha256', JSON.stringify({ crv, kty, x }), 'base64url') : undefined
}

function wrongClaim(
  { jti, htm, htu, iat, ath }: JWTPayload,
  { method, uri, tokenHash }: Parameters<CheckProof>[1],
  nowMs: number,
): string | undefined {
  if (typeof jti !== 'string' || jti === '') return 'The DPoP proof has no jti.'
  if (htm !== method) return 'The htm of the DPoP proof is not the method of this request.'
  if (typeof htu !== 'string' || canonicalUri(htu) !== uri)
    return 'The htu of the DPoP proof is not the URI of this request.'
  if (ath !== Buffer.from(tokenHash, 'hex').toString('base64url')) {
    return 'The ath of the DPoP proof is not the hash of this access token.'
  }
  if (typeof iat !== 'number') return 'The DPoP proof has no iat.'
  const ageMs = nowMs - iat * 1000
  if (ageMs > PROOF_AGE_MAX_MS) return 'The DPoP proof is too old; make a new one for each request.'
  if (ageMs < -PROOF_AHEAD_MAX_MS) return 'The DPoP proof is from the future; set your clock.'
  return undefined
}

function proofId(thumbprint: string, jti: string): string {
  return hash('sha256', `${thumbprint}.${jti}`, 'buffer').toString('latin1', 0, PROOF_ID_BYTES)
}

function invalid(detail: string): PossessionFault {
  return { reason: 'proof-invalid', detail, binding: 'dpop' }
}
