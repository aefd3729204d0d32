import type { IncomingMessage } from 'node:http'
import type { AddressRange } from '@tollward/contracts'
import { AppError } from '@tollward/errors'
import { errors, type KoaContextWithOIDC, type Provider } from 'oidc-provider'
import type { Logger } from 'pino'
import { type RegisteredClient, usesSecret } from '../../domain/client.ts'
import {
  metadataOfRegistration,
  type Registration,
  registrationRate,
  type Spec,
  specOf,
  type Terms,
} from '../../domain/registration.ts'
import { tokenHash } from '../../domain/token.ts'
import { errorLabel, type IssuerMetrics } from '../../metrics.ts'
import { metadataOf, REGISTRATION } from '../client-metadata.ts'
import type { ProviderPart } from '../compose.ts'
import type { Attempts } from '../people/attempts.ts'
import { sourceAddress } from '../people/source-address.ts'
import type { InitialTokens } from './initial-tokens.ts'
import { type Answer, answerOf, bearerOf, jsonBody, Refusal, unauthenticated } from './messages.ts'
import { clientOf, type Managed, newClientId, type Registrations, type ShownSecrets } from './registrations.ts'

const PATH = '/reg'
const TOKEN_PATH = '/token'

/** With 503, where as many clients have registered themselves as may: some lapse every hour. */
const FULL_RETRY_SECONDS = 3600

/** For judging a client alone. */
const NO_TERMS: Terms = { grants: [], scopes: [], audience: [], selfRegistered: false }

/** What an update must not have (RFC 7592, section 2.2). */
const NOT_IN_UPDATE = [
  'registration_access_token',
  'registration_client_uri',
  'client_secret_expires_at',
  'client_id_issued_at',
]

/** Open self-registration: what such clients may have, and how many may come. */
export interface SelfRegistration {
  readonly scopes: readonly string[]
  readonly audience: readonly string[]
  readonly registrationsPerSourceAndHour: number
}

export interface RegistrationOptions {
  readonly issuer: string
  readonly registrations: Registrations
  readonly initialTokens: InitialTokens
  /** Undefined: only with an initial access token. */
  readonly selfRegistration: SelfRegistration | undefined
  readonly attempts: Pick<Attempts, 'fromSource'>
  readonly trustedProxies: readonly AddressRange[]
  readonly metrics: IssuerMetrics
  readonly log: Logger
}

type Request = 'register' | 'read' | 'update' | 'delete'

/**
 * Dynamic client registration and its management (RFC 7591, RFC 7592). Not oidc-provider's own: what registers is judged by the
 * same rules as a Client document and stored the same way, its secrets only as hashes, each change in one write.
 */
export function registrationPart(options: RegistrationOptions): ProviderPart {
  const { issuer, metrics, log } = options
  const respond = async (ctx: Context, request: Request, act: () => Promise<Answer>) => {
    let answer: Answer
    try {
      answer = await act()
    } catch (error) {
      answer = answerOf(error)
      if (answer.status >= 500) log.warn({ err: error, request }, 'registration request failed')
    }
    const { status, body, headers = {} } = answer
    metrics.registrations.inc({ request, result: status < 300 ? 'ok' : errorLabel(String(body?.error)) })
    ctx.set({ 'cache-control': 'no-store', ...headers })
    ctx.status = status
    ctx.body = body ?? null
  }
  return {
    configuration: { discovery: { registration_endpoint: issuer + PATH } },
    install: (provider) => {
      const check = (spec: Spec) => assertUsable(provider, spec, options)
      provider.use(async (ctx, next) => {
        const [path, clientId, ...more] = ctx.path.slice(1).split('/')
        if (`/${path}` !== PATH || more.length > 0) {
          await next()
          await noteUse(ctx as KoaContextWithOIDC, options)
          return
        }
        if (clientId === undefined) {
          if (ctx.method !== 'POST') return notAllowed(ctx, 'POST')
          return respond(ctx, 'register', () => register(ctx.req, check, options))
        }
        switch (ctx.method) {
          case 'GET':
            return respond(ctx, 'read', () => read(clientId, ctx.req, options))
          case 'PUT':
            return respond(ctx, 'update', () => update(clientId, ctx.req, check, options))
          case 'DELETE':
            return respond(ctx, 'delete', () => remove(clientId, ctx.req, options))
          default:
            return notAllowed(ctx, 'GET, PUT, DELETE')
        }
      })
    },
  }
}

type Context = Parameters<Parameters<Provider['use']>[0]>[0]

async function register(
  request: IncomingMessage,
  check: (spec: Spec) => void,
  options: RegistrationOptions,
): Promise<Answer> {
  const { registrations, initialTokens, log } = options
  const token = bearerOf(request)
  const terms = token === undefined ? openTerms(options) : await initialTokens.find(token)
  if (!terms) throw noLeave(options, true)
  const spec = specWithin(await jsonBody(request), terms)
  check(spec)
  if (token === undefined) await countSource(request, options)
  // Taken before the client is made: of a crash between the two a registration is lost, never won.
  else if (!(await initialTokens.take(token))) throw noLeave(options, true)
  try {
    const registration = await registrations.register(newClientId(), spec, terms)
    log.info({ clientId: registration.clientId, selfRegistered: terms.selfRegistered }, 'client registered')
    return { status: 201, body: shown(registration, registration, options) }
  } catch (error) {
    if (!(error instanceof AppError && error.code === 'resource_exhausted')) throw error
    throw new Refusal(503, 'temporarily_unavailable', error.message, { 'retry-after': String(FULL_RETRY_SECONDS) })
  }
}

function openTerms(options: RegistrationOptions): Terms {
  if (!options.selfRegistration) throw noLeave(options, false)
  const { scopes, audience } = options.selfRegistration
  return { grants: ['client_credentials'], scopes, audience, selfRegistered: true }
}

function noLeave({ issuer }: RegistrationOptions, given: boolean): Refusal {
  const description = 'Ask the operator for an initial access token and send it as "Authorization: Bearer <token>".'
  return unauthenticated(description, issuer, given)
}

async function countSource(request: IncomingMessage, options: RegistrationOptions): Promise<void> {
  const { attempts, selfRegistration, trustedProxies } = options
  const rate = registrationRate(selfRegistration?.registrationsPerSourceAndHour ?? 1)
  const waitMs = await attempts.fromSource('registration', sourceAddress(request, trustedProxies), rate)
  if (waitMs === 0) return
  const headers = { 'retry-after': String(Math.ceil(waitMs / 1000)) }
  const description = 'Too many clients were registered from this address: wait as long as Retry-After says.'
  throw new Refusal(429, 'temporarily_unavailable', description, headers)
}

async function read(clientId: string, request: IncomingMessage, options: RegistrationOptions): Promise<Answer> {
  const managed = await authenticated(clientId, request, options)
  const registrationToken = bearerOf(request) ?? ''
  return { status: 200, body: shown(managed, { clientSecret: '', registrationToken }, options) }
}

async function update(
  clientId: string,
  request: IncomingMessage,
  check: (spec: Spec) => void,
  options: RegistrationOptions,
): Promise<Answer> {
  const managed = await authenticated(clientId, request, options)
  const body = await jsonBody(request)
  const forbidden = NOT_IN_UPDATE.find((name) => body[name] !== undefined)
  if (forbidden !== undefined) throw invalidRequest(`An update must not have ${forbidden}.`)
  if (body.client_id !== clientId) throw invalidRequest('An update has the client_id that it is for.')
  const secret = body.client_secret
  if (secret !== undefined && !(typeof secret === 'string' && managed.isSecret(secret))) {
    throw invalidRequest('client_secret is not the one of this client; leave it out.')
  }
  const spec = specWithin(body, managed.terms)
  check(spec)
  const updated = await options.registrations.update(managed, spec)
  if (!updated) throw unauthenticated('The registration was changed meanwhile.', options.issuer, true)
  return { status: 200, body: shown(updated, updated, options) }
}

async function remove(clientId: string, request: IncomingMessage, options: RegistrationOptions): Promise<Answer> {
  await authenticated(clientId, request, options)
  await options.registrations.remove(clientId, 'client deleted by itself')
  options.log.info({ clientId }, 'registered client removed itself')
  return { status: 204 }
}

async function authenticated(
  clientId: string,
  request: IncomingMessage,
  options: RegistrationOptions,
): Promise<Managed> {
  const token = bearerOf(request)
  const managed = token === undefined ? undefined : await options.registrations.managed(clientId, token)
  if (managed) return managed
  const description = 'Send the registration access token of this client as "Authorization: Bearer <token>".'
  throw unauthenticated(description, options.issuer, token !== undefined)
}

function specWithin(body: Record<string, unknown>, terms: Terms): Spec {
  const result = specOf(body, terms)
  if ('spec' in result) return result.spec
  throw new Refusal(400, result.error, result.description)
}

/** Judges a client as oidc-provider will when it is used, keys and all. */
function assertUsable(provider: Provider, spec: Spec, { issuer }: RegistrationOptions): void {
  const secret = { hash: usesSecret(spec) ? tokenHash('') : '', generation: '' }
  const client = clientOf({ clientId: newClientId(), spec, terms: NO_TERMS }, issuer, secret)
  try {
    Reflect.construct(provider.Client, [metadataOf(client)])
  } catch (error) {
    if (!(error instanceof errors.OIDCProviderError)) throw error
    throw new Refusal(400, error.error, error.error_description ?? error.message)
  }
}

/** Puts off that a client lapses which has just got a token. */
async function noteUse({ path, status, oidc }: KoaContextWithOIDC, options: RegistrationOptions): Promise<void> {
  if (path !== TOKEN_PATH || status !== 200) return
  const client = oidc.client?.[REGISTRATION] as RegisteredClient | undefined
  if (!client?.selfRegistered) return
  try {
    await options.registrations.noteUse(client.clientId, 'token')
  } catch (error) {
    // Its next token does it.
    options.log.warn({ err: error, clientId: client.clientId }, 'use of a self-registered client not noted')
  }
}

function invalidRequest(description: string): Refusal {
  return new Refusal(400, 'invalid_request', description)
}

function shown(
  registration: Registration,
  { clientSecret, registrationToken }: ShownSecrets,
  { issuer }: RegistrationOptions,
): Record<string, unknown> {
  return {
    ...metadataOfRegistration(registration),
    ...(clientSecret === '' ? {} : { client_secret: clientSecret, client_secret_expires_at: 0 }),
    registration_access_token: registrationToken,
    registration_client_uri: `${issuer}${PATH}/${registration.clientId}`,
  }
}

function notAllowed(ctx: Context, methods: string): void {
  ctx.set('allow', methods)
  ctx.status = 405
  ctx.body = { error: 'invalid_request', error_description: `Here are the methods ${methods}.` }
}
