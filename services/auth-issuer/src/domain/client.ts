import { type Client, durationMs } from '@tollward/documents'

/** What the operator's tokens are for, and nobody else's. */
const OPERATOR_AUDIENCE = 'urn:tollward:admin'

/** Short, since the operator's command asks for a new one whenever it needs one. */
const OPERATOR_TOKEN_LIFETIME_SECONDS = 600

const CLIENT_ID = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/

type Spec = Client['spec']

/** A client as the issuer knows it: its document or registration, and its secret. */
export interface RegisteredClient {
  readonly clientId: string
  /** What a consent page calls it; undefined: its id. */
  readonly displayName: string | undefined
  readonly grants: Spec['grants']
  readonly redirectUris: readonly string[]
  readonly postLogoutRedirectUris: readonly string[]
  readonly scopes: readonly string[]
  /** Resource servers its tokens may be for; never empty. */
  readonly audience: readonly string[]
  readonly authentication: Spec['authentication']
  readonly jwks: Spec['jwks']
  readonly certificateSubject: string | undefined
  readonly senderConstraint: Spec['senderConstraint']
  readonly requirePushedAuthorization: boolean
  readonly idTokenAlgorithm: Spec['idTokenAlgorithm']
  readonly tokenLifetimeSeconds: number
  readonly refreshLifetimeSeconds: number
  /** Audiences whose tokens it may introspect, besides its own tokens. */
  readonly introspects: readonly string[]
  /** It registered itself without anybody's leave. */
  readonly selfRegistered: boolean
  /** SHA-256 of the secret, lower-case hexadecimal; empty: it has none. */
  readonly secretHash: string
  /** A token is good only under the generation that it was issued in. */
  readonly generation: string
}

/** The client that the operator's command uses; made at installation, in no document. */
export interface OperatorClient {
  readonly clientId: string
  readonly secretSha256: string
  readonly scopes: readonly string[]
}

/** Whether the text can be the name of a Client document: what cannot is never looked up. */
export function isClientId(text: string): boolean {
  return CLIENT_ID.test(text)
}

/** Whether a client authenticates by a secret, which it is then given. */
export function usesSecret({ authentication }: Pick<RegisteredClient, 'authentication'>): boolean {
  return authentication === 'client_secret_basic' || authentication === 'client_secret_post'
}

/**
 * Registers the client of a document. Where the document names no audience its tokens are for the issuer itself, since an
 * internal token needs one (RFC 9068, section 3).
 */
export function fromDocument(
  { metadata, spec }: Client,
  issuer: string,
  secret: { hash: string; generation: string },
): RegisteredClient {
  return {
    clientId: metadata.name,
    displayName: spec.displayName,
    grants: spec.grants,
    redirectUris: spec.redirectUris,
    postLogoutRedirectUris: spec.postLogoutRedirectUris,
    scopes: spec.scopes,
    audience: spec.audience.length === 0 ? [issuer] : spec.audience,
    authentication: spec.authentication,
    jwks: spec.jwks,
    certificateSubject: spec.certificateSubject,
    senderConstraint: spec.senderConstraint,
    requirePushedAuthorization: spec.requirePushedAuthorization,
    idTokenAlgorithm: spec.idTokenAlgorithm,
    tokenLifetimeSeconds: seconds(spec.tokenLifetime),
    refreshLifetimeSeconds: seconds(spec.refreshLifetime),
    introspects: spec.introspects,
    selfRegistered: false,
    secretHash: secret.hash,
    generation: secret.generation,
  }
}

/** Registers the operator's client. A new secret in its file ends the tokens of the old one, as `generation` does. */
export function fromOperator(operator: OperatorClient, generation: string): RegisteredClient {
  return {
    clientId: operator.clientId,
    displayName: undefined,
    grants: ['client_credentials'],
    redirectUris: [],
    postLogoutRedirectUris: [],
    scopes: operator.scopes,
    audience: [OPERATOR_AUDIENCE],
    authentication: 'client_secret_basic',
    jwks: undefined,
    certificateSubject: undefined,
    senderConstraint: undefined,
    requirePushedAuthorization: false,
    idTokenAlgorithm: 'ES256',
    tokenLifetimeSeconds: OPERATOR_TOKEN_LIFETIME_SECONDS,
    refreshLifetimeSeconds: OPERATOR_TOKEN_LIFETIME_SECONDS,
    introspects: [],
    selfRegistered: false,
    secretHash: operator.secretSha256,
    generation: `${generation}.${operator.secretSha256.slice(0, 16)}`,
  }
}

/** The first requested scope that the client may not have; undefined: it may have them all. */
export function refusedScope(client: RegisteredClient, requested: Iterable<string>): string | undefined {
  for (const scope of requested) if (!client.scopes.includes(scope)) return scope
  return undefined
}

/** Whole seconds of a duration as documents write it, one at least. */
function seconds(duration: string): number {
  return Math.max(1, Math.floor(durationMs(duration) / 1000))
}
