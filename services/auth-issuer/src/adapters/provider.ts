import type { EventEmitter } from 'node:events'
import { AppError } from '@tollward/errors'
import { type Client, type Configuration, errors, type KoaContextWithOIDC, Provider } from 'oidc-provider'
import type { Logger } from 'pino'
import { resourceOf } from '../domain/audience.ts'
import { type RegisteredClient, refusedScope } from '../domain/client.ts'
import { idTokenLifetime } from '../domain/token.ts'
import { errorLabel, type IssuerMetrics } from '../metrics.ts'
import { metadataOf, REGISTRATION } from './client-metadata.ts'
import { type Clients, isSecretOf } from './clients.ts'
import { composedConfiguration, type ProviderPart } from './compose.ts'
import { installIds, oidcAdapters } from './oidc-adapter.ts'
import type { Stores } from './stores.ts'

/** A token request is a few hundred bytes; a client assertion may have some thousand. */
export const BODY_BYTES_MAX = 16_384

/** A bus that is gone for longer is not waited for: the client gets its 503 at once. */
export const BUS_PATIENCE_MS = 1000

/** Key of the client's generation among the claims that oidc-provider keeps with a token. */
const GENERATION = 'generation'

/** Scopes of OpenID Connect: they are no API's. */
export const OIDC_SCOPES: ReadonlySet<string> = new Set(['openid', 'offline_access'])

/** Members of the discovery document that belong to features that are not offered. */
const NOT_OFFERED = ['claim_types_supported', 'claims_parameter_supported', 'request_uri_parameter_supported']

const AUTHORIZATION_CODE_LIFETIME_SECONDS = 60

/** A person who is asked to sign in and consent has so long for it. */
const INTERACTION_LIFETIME_SECONDS = 15 * 60

/** Since the last request that changed it. */
export const SESSION_LIFETIME_SECONDS = 24 * 60 * 60

/** After that a person is asked again, however often the client refreshed. */
const GRANT_LIFETIME_SECONDS = 365 * 24 * 60 * 60

export interface ProviderOptions {
  readonly issuer: string
  readonly introspectionUrl: string | undefined
  readonly stores: Stores
  /** The keys, and what is offered besides client credentials, refresh and revocation. */
  readonly parts: readonly ProviderPart[]
  readonly metrics: IssuerMetrics
  readonly log: Logger
}

/** The OAuth server: oidc-provider with exactly the flows that are offered. */
export function createProvider(options: ProviderOptions): Provider {
  const { issuer, stores, parts, metrics, log } = options
  const { bus } = stores
  const core = [coreConfiguration(options), codeFlowConfiguration()].map((configuration) => ({ configuration }))
  const provider = new Provider(issuer, composedConfiguration([...core, ...parts]))
  installClients(provider, stores.clients)
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
    await next()
    if (ctx.status === 404 && !ctx.body) {
      answer(ctx, 404, 'not_found', 'Endpoints are listed in /.well-known/openid-configuration.')
    }
    if (ctx.path.startsWith('/.well-known/') && ctx.status === 200) hideNotOffered(ctx.body)
  })
  installIds(provider)
  for (const { install } of parts) install?.(provider)
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

/** Clients are ours, from their documents and registrations; oidc-provider's own way of finding them is not used. */
function installClients({ Client }: Provider, clients: Clients): void {
  // A registration stays the same object until something of it changes; judging metadata anew takes longer than a token.
  const made = new WeakMap<RegisteredClient, Client>()
  Client.find = async (id) => {
    const registered = await clients.findHeard(id)
    if (!registered) return undefined
    const client = made.get(registered) ?? (Reflect.construct(Client, [metadataOf(registered)]) as Client)
    made.set(registered, client)
    return client
  }
  // Our "secrets" are hashes: see metadataOf.
  Client.prototype.compareClientSecret = async function (this: Client, secret: string) {
    if (isSecretOf(registrationOf(this).secretHash, secret)) return true
    const now = await clients.authenticate(this.clientId, secret)
    // This replica had not heard of the secret yet. The token is issued under the generation that came with it.
    if (now) Reflect.set(this, REGISTRATION, now)
    return now !== undefined
  }
}

function coreConfiguration({ introspectionUrl, stores }: ProviderOptions): Configuration {
  return {
    adapter: oidcAdapters(stores),
    cookies: { keys: stores.masterSecret.deriveAll('cookies').map((key) => key.toString('base64url')) },
    clientDefaults: { id_token_signed_response_alg: 'ES256' },
    enabledJWA: { idTokenSigningAlgValues: ['ES256', 'EdDSA'], requestObjectSigningAlgValues: [] },
    extraClientMetadata: { properties: [REGISTRATION] },
    extraTokenClaims: (ctx) => ({ [GENERATION]: registrationOf(ctx.oidc.client).generation }),
    formats: { bitsOfOpaqueRandomness: 256 },
    ttl: { ClientCredentials: (_ctx, _token, client) => registrationOf(client).tokenLifetimeSeconds },
    // A client that runs in a browser is served where it has itself sent to.
    clientBasedCORS: (_ctx, origin, client) =>
      registrationOf(client).redirectUris.some((uri) => originOf(uri) === origin),
    ...(introspectionUrl === undefined ? {} : { discovery: { introspection_endpoint: introspectionUrl } }),
    features: {
      clientCredentials: { enabled: true },
      revocation: { enabled: true, allowedPolicy: (_ctx, client, token) => token.clientId === client.clientId },
      resourceIndicators: {
        enabled: true,
        defaultResource: (ctx, client, oneOf) =>
          oneOf ?? askedAgain(stores, client, (registered) => defaultResourceOf(ctx, registered)),
        getResourceServerInfo: (ctx, resource, client) =>
          askedAgain(stores, client, (registered) => resourceServerOf(ctx, resource, registered)),
        useGrantedResource: (ctx, source) => asksForApi(scopesOf(ctx) ?? source.scopes),
      },
      devInteractions: { enabled: false },
    },
  }
}

/** What concerns people: the code flow (PKCE always), refresh tokens, sessions. */
function codeFlowConfiguration(): Configuration {
  return {
    responseTypes: ['code'],
    scopes: [...OIDC_SCOPES],
    pkce: { required: () => true },
    issueRefreshToken: (_ctx, client) => client.grantTypeAllowed('refresh_token'),
    rotateRefreshToken: true,
    // A grant ends when somebody ends it; that a browser's session is over says nothing of it.
    expiresWithSession: () => false,
    ttl: {
      AccessToken: (_ctx, _token, client) => registrationOf(client).tokenLifetimeSeconds,
      IdToken: (_ctx, _token, client) => idTokenLifetime(registrationOf(client).tokenLifetimeSeconds),
      RefreshToken: (_ctx, _token, client) => registrationOf(client).refreshLifetimeSeconds,
      AuthorizationCode: AUTHORIZATION_CODE_LIFETIME_SECONDS,
      Interaction: INTERACTION_LIFETIME_SECONDS,
      Session: SESSION_LIFETIME_SECONDS,
      Grant: GRANT_LIFETIME_SECONDS,
    },
  }
}

function scopesOf(ctx: KoaContextWithOIDC): ReadonlySet<string> | undefined {
  return typeof ctx.oidc.params?.scope === 'string' ? ctx.oidc.requestParamScopes : undefined
}

/** A token for openid alone is for userinfo (and then for nothing else); with any other scope, or none, it is for an API. */
function asksForApi(scopes: ReadonlySet<string>): boolean {
  return scopes.size === 0 || [...scopes].some((scope) => !OIDC_SCOPES.has(scope))
}

/** Judges by what this replica has heard of the client, and before it refuses by how the client stands at this moment. */
async function askedAgain<T>({ clients }: Stores, client: Client, judge: (client: RegisteredClient) => T): Promise<T> {
  const heard = registrationOf(client)
  try {
    return judge(heard)
  } catch (error) {
    const now = await clients.find(heard.clientId)
    if (!now) throw error
    return judge(now)
  }
}

/** The resource of a request that names none (RFC 8707, section 2): the client's only one. */
function defaultResourceOf(ctx: KoaContextWithOIDC, client: RegisteredClient): string | undefined {
  const { grant_type: grantType } = ctx.oidc.params ?? {}
  if (grantType !== 'client_credentials' && !asksForApi(scopesOf(ctx) ?? new Set())) return undefined
  const [first, ...others] = client.audience
  if (first === undefined || others.length > 0) {
    throw described(new errors.InvalidTarget(), 'this client has several audiences: name one with "resource"')
  }
  return resourceOf(first)
}

/** What a client's token for one resource may be (RFC 8707): checked here, because here client, resource and scope are known. */
function resourceServerOf(ctx: KoaContextWithOIDC, resource: string, client: RegisteredClient) {
  const { params } = ctx.oidc
  if (!params) throw new errors.InvalidRequest('parameters are missing')
  const { grant_type: grantType } = params
  const forPerson = grantType !== 'client_credentials'
  // RFC 6749, section 3.3: without `scope` the default is everything that the client may have. A code or refresh token has its own.
  if (!forPerson || grantType === undefined) params.scope ??= client.scopes.join(' ') || undefined
  const requested = [...ctx.oidc.requestParamScopes].filter((scope) => !(forPerson && OIDC_SCOPES.has(scope)))
  const refused = refusedScope(client, requested)
  if (refused !== undefined) throw new errors.InvalidScope('requested scope is not allowed', refused)
  const audience = client.audience.find((name) => name === resource || resourceOf(name) === resource)
  if (audience === undefined) {
    throw described(new errors.InvalidTarget(), 'this client may not have tokens for the requested resource')
  }
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

function originOf(uri: string): string | undefined {
  return URL.parse(uri)?.origin
}

function hideNotOffered(document: unknown): void {
  if (typeof document !== 'object' || document === null) return
  for (const member of NOT_OFFERED) Reflect.deleteProperty(document, member)
}
