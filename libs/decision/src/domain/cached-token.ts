import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { Confirmation, TokenInfo } from '@tollward/contracts/token'
import { decodeJwt } from 'jose'
import { INTERNAL_TOKEN_LEFT_MIN_MS, SHARED_RIGHTS_MAX } from '../edges.ts'
import { type HeaderField, identityHeaders } from './answer.ts'
import { BoundedMap } from './bounded-map.ts'
import type { KnownToken } from './judge.ts'
import type { Binding } from './possession.ts'
import type { Remembered } from './revocable-cache.ts'
import { tagsOf } from './revocation-tags.ts'

/** What a client's tokens of the same scopes and audience have in common. */
interface Rights {
  readonly clientId: string
  readonly scopes: ReadonlySet<string>
  readonly scope: string
  readonly audience: readonly string[]
  readonly selfRegistered: boolean
}

/**
 * A token in memory. There are many of them, and the collector of garbage looks at every object of each, again and again: so it
 * is few objects, and what they don't hold is made when somebody asks for it.
 */
export class CachedToken implements KnownToken, Remembered {
  readonly hash: string
  readonly subject: string
  readonly grantHash: string
  readonly binding: Binding | undefined
  readonly expiresAtMs: number
  readonly internalExpiresAtMs: number
  nextRefreshAtMs = 0
  readonly #rights: Rights
  readonly #authorization: string

  constructor(hash: string, info: TokenInfo, rights: Rights, ends: Ends) {
    this.hash = hash
    this.subject = info.subject === rights.clientId ? rights.clientId : info.subject
    this.grantHash = info.grantHash
    this.binding = bindingOf(info.confirmation)
    this.expiresAtMs = ends.expiresAtMs
    this.internalExpiresAtMs = ends.internalExpiresAtMs
    this.#rights = rights
    // Joined, it is one text; a template would keep its parts as well.
    this.#authorization = ['Bearer', info.internalToken].join(' ')
  }

  get clientId(): string {
    return this.#rights.clientId
  }

  get scopes(): ReadonlySet<string> {
    return this.#rights.scopes
  }

  get scope(): string {
    return this.#rights.scope
  }

  get audience(): readonly string[] {
    return this.#rights.audience
  }

  get selfRegistered(): boolean {
    return this.#rights.selfRegistered
  }

  get tags(): readonly string[] {
    return tagsOf(this)
  }

  get usableUntilMs(): number {
    return Math.min(this.expiresAtMs, this.internalExpiresAtMs - INTERNAL_TOKEN_LEFT_MIN_MS)
  }

  get identity(): readonly HeaderField[] {
    const { clientId, subject, scope } = this
    return identityHeaders({ clientId, subject, scope, authorization: this.#authorization })
  }

  claims(): Readonly<Record<string, unknown>> {
    return payloadOf(this.#authorization.slice('Bearer '.length))
  }
}

interface Ends {
  readonly expiresAtMs: number
  readonly internalExpiresAtMs: number
}

/** Makes tokens to be kept, which share what they have in common. */
export class CachedTokens {
  readonly #rights: BoundedMap<string, Rights>

  constructor(rightsMax = SHARED_RIGHTS_MAX) {
    this.#rights = new BoundedMap(rightsMax, () => {})
  }

  /** Undefined unless the token is active and everything that makes it usable is there. */
  of(info: TokenInfo, hash: string): CachedToken | undefined {
    const { active, clientId, expiresAt, internalToken, internalTokenExpiresAt } = info
    if (!active || clientId === '' || internalToken === '' || !expiresAt || !internalTokenExpiresAt) return undefined
    const ends = { expiresAtMs: timestampMs(expiresAt), internalExpiresAtMs: timestampMs(internalTokenExpiresAt) }
    return new CachedToken(hash, info, this.#rightsOf(info), ends)
  }

  #rightsOf({ clientId, scopes, audience, selfRegistered }: TokenInfo): Rights {
    const key = JSON.stringify([clientId, scopes, audience, selfRegistered])
    const known = this.#rights.get(key)
    if (known) return known
    const rights = { clientId, scopes: new Set(scopes), scope: scopes.join(' '), audience, selfRegistered }
    this.#rights.set(key, rights)
    return rights
  }
}

/** The claims of a JWT that the introspector vouched for; none where it is not readable. */
function payloadOf(jwt: string): Readonly<Record<string, unknown>> {
  try {
    return decodeJwt(jwt)
  } catch {
    // No claim is no claim: whatever a rule wants of it is not met.
    return {}
  }
}

/** What a token is bound to. A confirmation of a method that is not known here binds to what nobody has. */
export function bindingOf(confirmation: Confirmation | undefined): Binding | undefined {
  if (!confirmation) return undefined
  const { method } = confirmation
  if (method.case === 'x5tS256') return { to: 'certificate', thumbprint: method.value }
  return { to: 'dpop', thumbprint: method.case === 'jkt' ? method.value : '' }
}
