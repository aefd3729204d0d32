import { hash } from 'node:crypto'
import type { MaybePromise } from './judge.ts'
import type { Reason } from './reasons.ts'

/** The key without which a token is worth nothing (RFC 7800 "cnf"). */
export interface Binding {
  /** A DPoP key by its RFC 7638 thumbprint, or a client certificate by that of its DER; both SHA-256, base64url. */
  readonly to: 'dpop' | 'certificate'
  readonly thumbprint: string
}

/** A token together with what came with it. */
export interface Presented {
  /** SHA-256 of the token, lower-case hexadecimal. */
  readonly tokenHash: string
  readonly scheme: 'bearer' | 'dpop'
  /** The DPoP header; false where there was more than one. */
  readonly proof: string | undefined | false
  readonly method: string
  /** Canonical; undefined where the scheme under which the client asked is not known. */
  readonly uri: () => string | undefined
  /** The DER of the certificate whose key the client's connection proved; undefined where there was none. */
  readonly certificate: (() => Uint8Array | undefined) | undefined
}

/** Why a token is worth nothing in the hands of whoever presented it. */
export interface PossessionFault {
  readonly reason: Extract<Reason, 'token-invalid' | 'proof-missing' | 'proof-invalid' | 'unavailable'>
  readonly detail?: string
  readonly binding?: Binding['to']
}

/** Checks a DPoP proof (RFC 9449, 4.3). Undefined: it proves possession of the key, for this request and the first time. */
export type CheckProof = (
  proof: string,
  expected: { readonly thumbprint: string; readonly tokenHash: string; readonly method: string; readonly uri: string },
) => Promise<PossessionFault | undefined>

/**
 * Whether whoever presents a token has the key that it is bound to. Undefined: yes, or it is bound to none and is a plain bearer
 * token. At once but for DPoP.
 */
export function provePossession(
  binding: Binding | undefined,
  presented: Presented,
  checkProof: CheckProof,
): MaybePromise<PossessionFault | undefined> {
  if (!binding) return presented.scheme === 'bearer' ? undefined : notDpop('it is bound to no key')
  return binding.to === 'dpop'
    ? proveKey(binding.thumbprint, presented, checkProof)
    : proveCertificate(binding.thumbprint, presented)
}

function proveKey(
  thumbprint: string,
  { tokenHash, scheme, proof, method, uri }: Presented,
  checkProof: CheckProof,
): MaybePromise<PossessionFault | undefined> {
  const fault = (reason: PossessionFault['reason'], detail: string): PossessionFault => ({
    reason,
    detail,
    binding: 'dpop',
  })
  if (scheme === 'bearer') {
    return fault(
      'proof-missing',
      'This token is bound to a DPoP key: send "Authorization: DPoP <token>" and a DPoP proof.',
    )
  }
  if (proof === undefined) return fault('proof-missing', 'Send a fresh proof in the header DPoP (RFC 9449).')
  if (proof === false) return fault('proof-invalid', 'Send exactly one header DPoP with one proof.')
  const asked = uri()
  if (asked === undefined) return fault('proof-invalid', 'Which URI you asked for is not known here.')
  return checkProof(proof, { thumbprint, tokenHash, method, uri: asked })
}

function proveCertificate(thumbprint: string, { scheme, certificate }: Presented): PossessionFault | undefined {
  if (scheme === 'dpop') return notDpop('it is bound to a client certificate')
  const der = certificate?.()
  if (!der) {
    const detail = 'This token is bound to a client certificate: connect by TLS with that certificate.'
    return { reason: 'proof-missing', detail, binding: 'certificate' }
  }
  if (hash('sha256', der, 'base64url') === thumbprint) return undefined
  const detail = 'This token is bound to another client certificate than that of this connection.'
  return { reason: 'proof-invalid', detail, binding: 'certificate' }
}

function notDpop(because: string): PossessionFault {
  return { reason: 'token-invalid', detail: `Send this token as "Authorization: Bearer <token>": ${because}.` }
}
