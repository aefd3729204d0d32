import { hash } from 'node:crypto'
import type { Client } from '@tollward/bus'
import type { IntrospectorService, TokenInfo } from '@tollward/contracts/token'
import { bindingOf, canonicalUri, challenge, type Possession, REASONS, readFields } from '@tollward/decision'
import { AppError } from '@tollward/errors'
import { Problem } from './problem.ts'

/** A request as far as it says who sent it. */
export interface Asking {
  readonly method: string
  /** Path and query as they came. */
  readonly target: string
  /** Name, value, name, value. */
  readonly rawHeaders: readonly string[]
}

type Unauthenticated = Parameters<typeof challenge>[0]

/**
 * Makes the check of who asks, by the rules of every other place where tokens count: a token that is bound to a DPoP key needs a
 * proof for this request, and one that is bound to a client certificate is worth nothing here, where connections have none. It gives
 * what the token is worth. Problem `unauthenticated`, AppError `unavailable` if nobody can tell.
 */
export function callerCheck({
  introspector,
  possession,
  publicUrl,
}: {
  readonly introspector: Pick<Client<typeof IntrospectorService>, 'introspect'>
  readonly possession: Possession
  /** Where clients reach this service: what proofs are compared with. */
  readonly publicUrl: string
}): (asking: Asking) => Promise<TokenInfo> {
  return async ({ method, target, rawHeaders }) => {
    const fields = readFields(rawHeaders)
    if (typeof fields === 'string' || fields.token === undefined) throw unauthenticated({ reason: 'token-missing' })
    const { token, scheme, proof } = fields
    const { info } = token === '' ? {} : await introspector.introspect({ token })
    if (info?.active !== true || info.clientId === '') throw unauthenticated({ reason: 'token-invalid' })
    const tokenHash = hash('sha256', token, 'hex')
    const uri = () => canonicalUri(publicUrl + target)
    const presented = { tokenHash, scheme, proof, method, uri, certificate: undefined }
    const fault = await possession.prove(bindingOf(info.confirmation), presented)
    if (fault?.reason === 'unavailable') throw new AppError('unavailable', 'Try again in a moment.')
    if (fault) throw unauthenticated(fault)
    return info
  }
}

function unauthenticated(refusal: Unauthenticated): Problem {
  const message = refusal.detail ?? REASONS[refusal.reason].detail
  return new Problem(refusal.reason, new AppError('unauthenticated', message), { challenge: challenge(refusal) })
}
