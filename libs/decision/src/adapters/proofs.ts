import { hash } from 'node:crypto'
import { calculateJwkThumbprint, decodeProtectedHeader, EmbeddedJWK, type JWTPayload, jwtVerify } from 'jose'
import { PROOF_ALGORITHMS } from '../domain/answer.ts'
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
import { PROOF_AGE_MAX_MS, PROOF_AHEAD_MAX_MS, PROOFS_MAX } from '../edges.ts'

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
  return {
    get size() {
      return used.size
    },
    check: async (proof, expected) => {
      const payload = await verified(proof, expected.thumbprint)
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
async function verified(proof: string, thumbprint: string): Promise<JWTPayload | string> {
  try {
    const { jwk } = decodeProtectedHeader(proof)
    if (!jwk) return 'The DPoP proof has no public key in its header.'
    // Before the signature, which costs more: a thief has another key.
    if ((await calculateJwkThumbprint(jwk)) !== thumbprint) {
      return 'The DPoP proof was signed by another key than the one that this token is bound to.'
    }
    const { payload } = await jwtVerify(proof, EmbeddedJWK, { typ: 'dpop+jwt', algorithms: [...PROOF_ALGORITHMS] })
    return payload
  } catch {
    // Whatever the library or the key's import did not like about it, it proves nothing.
    return 'The DPoP proof is not a JWT of type dpop+jwt, signed with ES256 or EdDSA by the public key in its header.'
  }
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
