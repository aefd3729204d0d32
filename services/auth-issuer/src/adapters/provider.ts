import type { EventEmitter } from 'node:events'
import type { Bus } from '@tollward/bus'
import { AppError } from '@tollward/errors'
import { type Client, type Configuration, errors, type KoaContextWithOIDC, Provider } from 'oidc-provider'
import type { Logger } from 'pino'
import { type RegisteredClient, refusedScope } from '../domain/client.ts'
import { errorLabel, type IssuerMetrics } from '../metrics.ts'
import { type Clients, isSecretOf } from './clients.ts'
import type { SigningKeys } from './files.ts'
import type { MasterSecret } from './master-secret.ts'
import { oidcAdapters, REGISTRATION } from './oidc-adapter.ts'
import type { Tokens } from './tokens.ts'

/** A token request is a few hundred bytes; a client assertion may have some thousand. */
export const BODY_BYTES_MAX = 16_384

/** A bus that is gone for longer is not waited for: the client gets its 503 at once. */
const BUS_PATIENCE_MS = 1000

/** Stands for "whatever the client's tokens are for" in a request without `resource`: names of APIs need not be URIs, resources must. */
const DEFAULT_RESOURCE = 'urn:tollward:default-audience'

/** Key of the client's generation among the claims that oidc-provider keeps with a token. */
export const GENERATION = 'generation'

/** Paths that oidc-provider serves for flows that are not enabled. */
const NOT_OFFERED = /^\/(auth|session)(\/|$)/

/** Members of the discovery document that belong to flows that are not enabled. */
const NOT_ADVERTISED = [
  'authorization_endpoint',
  'authorization_response_iss_parameter_supported',
  'claim_types_supported',
  'claims_parameter_supported',
  'claims_supported',
  'code_challenge_methods_supported',
  'request_uri_parameter_supported',
  'response_modes_supported',
  'scopes_supported',
]

export interface ProviderOptions {
  readonly issuer: string
  readonly introspectionUrl: string | undefined
  readonly bus: Pick<Bus, 'disconnectedForMs'>
  readonly masterSecret: MasterSecret
  readonly keys: SigningKeys
  readonly clients: Clients
  readonly tokens: Tokens
  readonly metrics: IssuerMetrics
  readonly log: Logger
}

/** The OAuth server: oidc-provider with exactly the flows that are offered. */
export function createProvider(options: ProviderOptions): Provider {
  const { issuer, bus, metrics, log } = options
  const provider = new Provider(issuer, configurationOf(options))
  // Our "secrets" are hashes: see metadataOf.
  provider.Client.prototype.compareClientSecret = function (this: Client, secret: string) {
    return isSecretOf(registrationOf(this).secretHash, secret)
  }
  // Addresses in answers are the issuer's, whatever the Host header of a request says.
  provider.proxy = true
  const { host, protocol } = new URL(issuer)
  provider.use(async (ctx, next) => {
    ctx.req.headers['x-forwarded-host'] = host
    ctx.req.headers['x-forwarded-proto'] = protocol.slice(0, -1)
    if ((ctx.request.length ?? 0) > BODY_BYTES_MAX) {
      metrics.refused.inc({ error: 'too_large' })
      ctx.set('Connection', 'close')
      return answer(ctx, 413, 'invalid_request', `The body may have at most ${BODY_BYTES_MAX} bytes.`)
    }
    if (ctx.method === 'POST' && bus.disconnectedForMs > BUS_PATIENCE_MS) {
      metrics.refused.inc({ error: 'temporarily_unavailable' })
      return answerUnavailable(ctx)
    }
    if (!NOT_OFFERED.test(ctx.path)) await next()
    if (ctx.status === 404 && !ctx.body) {
      answer(ctx, 404, 'not_found', 'Endpoints are listed in /.well-known/openid-configuration.')
    }
    if (ctx.path.startsWith('/.well-known/') && ctx.status === 200) hideNotOffered(ctx.body)
  })
  provider.on('server_error', (ctx: KoaContextWithOIDC, error: Error) => {
    const unavailable = error instanceof AppError && error.meaning.http >= 503
    log[unavailable ? 'warn' : 'error']({ err: error, path: ctx.path }, 'OAuth request failed')
    metrics.refused.inc({ error: unavailable ? 'temporarily_unavailable' : 'server_error' })
    if (unavailable) answerUnavailable(ctx)
  })
  const count = (_ctx: KoaContextWithOIDC, error: errors.OIDCProviderError) =>
    metrics.refused.inc({ error: errorLabel(error.error) })
  provider.on('grant.error', count)
  provider.on('revocation.error', count)
  // What fails outside of any endpoint, such as a connection that breaks while it is answered.
  const emitter: EventEmitter = provider
  emitter.on('error', (error: Error) => log.warn({ err: error }, 'HTTP request failed'))
  return provider
}

function configurationOf({ introspectionUrl, masterSecret, keys, clients, tokens }: ProviderOptions): Configuration {
  return {
    adapter: oidcAdapters(clients, tokens),
    jwks: keys.jwks,
    cookies: { keys: masterSecret.deriveAll('cookies').map((key) => key.toString('base64url')) },
    // There are no people yet, only clients.
    findAccount: () => undefined,
    scopes: [],
    claims: {},
    responseTypes: [],
    clientAuthMethods: ['client_secret_basic', 'client_secret_post'],
    clientDefaults: { id_token_signed_response_alg: 'ES256' },
    enabledJWA: { idTokenSigningAlgValues: ['ES256'], requestObjectSigningAlgValues: [] },
    extraClientMetadata: { properties: [REGISTRATION] },
    extraTokenClaims: (ctx) => ({ [GENERATION]: registrationOf(ctx.oidc.client).generation }),
    formats: { bitsOfOpaqueRandomness: 256 },
    ttl: { ClientCredentials: (_ctx, _token, client) => registrationOf(client).tokenLifetimeSeconds },
    clientBasedCORS: () => false,
    renderError: (ctx, out) => {
      ctx.body = out
    },
    ...(introspectionUrl === undefined ? {} : { discovery: { introspection_endpoint: introspectionUrl } }),
    features: {
      clientCredentials: { enabled: true },
      revocation: { enabled: true, allowedPolicy: (_ctx, client, token) => token.clientId === client.clientId },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => DEFAULT_RESOURCE,
        getResourceServerInfo: (ctx, resource, client) => resourceServerOf(ctx, resource, registrationOf(client)),
      },
      devInteractions: { enabled: false },
      dPoP: { enabled: false },
      pushedAuthorizationRequests: { enabled: false },
      rpInitiatedLogout: { enabled: false },
      userinfo: { enabled: false },
    },
  }
}

/** What a client's token for one resource may be (RFC 8707): checked here, because here client, resource and scope are known. */
function resourceServerOf(ctx: KoaContextWithOIDC, resource: string, client: RegisteredClient) {
  const { params } = ctx.oidc
  if (!params) throw new errors.InvalidRequest('parameters are missing')
  // RFC 6749, section 3.3: without `scope` the default is everything that the client may have.
  params.scope ??= client.scopes.join(' ') || undefined
  const refused = refusedScope(client, ctx.oidc.requestParamScopes)
  if (refused !== undefined) throw new errors.InvalidScope('requested scope is not allowed', refused)
  const [first, ...others] = client.audience
  if (resource === DEFAULT_RESOURCE) {
    if (first === undefined || others.length > 0) {
      throw described(new errors.InvalidTarget(), 'this client has several audiences: name one with "resource"')
    }
  } else if (!client.audience.includes(resource)) {
    throw described(new errors.InvalidTarget(), 'this client may not have tokens for the requested resource')
  }
  const audience = resource === DEFAULT_RESOURCE && first !== undefined ? first : resource
  return { scope: client.scopes.join(' '), audience, accessTokenFormat: 'opaque' as const }
}

function described(error: errors.InvalidTarget, description: string): errors.InvalidTarget {
  error.error_description = description
  return error
}

function registrationOf(client: Client | undefined): RegisteredClient {
  if (!client) throw new errors.InvalidClient('client authentication failed')
  return client[REGISTRATION] as RegisteredClient
}

/** An error as RFC 6749, section 5.2 writes it. */
function answer(
  ctx: Pick<KoaContextWithOIDC, 'status' | 'body' | 'set'>,
  status: number,
  error: string,
  description: string,
): void {
  ctx.status = status
  ctx.body = { error, error_description: description }
}

function answerUnavailable(ctx: Pick<KoaContextWithOIDC, 'status' | 'body' | 'set'>): void {
  ctx.set('Retry-After', '1')
  answer(ctx, 503, 'temporarily_unavailable', 'Tokens cannot be reached at the moment; try again in a second.')
}

function hideNotOffered(document: unknown): void {
  if (typeof document !== 'object' || document === null) return
  for (const member of NOT_ADVERTISED) Reflect.deleteProperty(document, member)
}
