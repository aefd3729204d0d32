import { type Client, ClientSchema } from '@tollward/documents'
import { z } from 'zod'
import type { Rate } from './attempts.ts'

export type Spec = Client['spec']
export type Grant = Spec['grants'][number]

/** What a client may register at most, now and later. */
export interface Terms {
  readonly grants: readonly Grant[]
  readonly scopes: readonly string[]
  readonly audience: readonly string[]
  /** Nobody gave leave. */
  readonly selfRegistered: boolean
}

const { grants, scopes, audience } = ClientSchema.shape.spec.shape

/** What an operator may allow, by the rules of Client documents. */
export const TermsSchema = z.strictObject({ grants, scopes, audience })

/** A client as it registered. Times are milliseconds since the epoch. */
export interface Registration {
  readonly clientId: string
  readonly spec: Spec
  readonly terms: Terms
  readonly registeredAtMs: number
}

/** Why metadata are refused (RFC 7591, section 3.2.2). */
export interface MetadataFault {
  readonly error: 'invalid_redirect_uri' | 'invalid_client_metadata'
  readonly description: string
}

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS

/** A client that registered itself and never got a token is forgotten then. */
export const UNUSED_LIFETIME_MS = HOUR_MS

/** One that never bought a pass is forgotten so long after its last token: longer than anybody gives for paying an invoice. */
export const IDLE_LIFETIME_MS = 30 * DAY_MS

/** One that bought a pass, after the last pass or token: longer than any pass lasts (365 days), so that no payment is lost. */
export const PAID_LIFETIME_MS = 400 * DAY_MS

/** A lapse is put off at most once in this time, so that a client that gets tokens all day costs one write a day. */
const LAPSE_STEP_MS = DAY_MS

export const INITIAL_TOKEN_LIFETIME_SECONDS_MAX = 30 * 24 * 3600
export const INITIAL_TOKEN_REGISTRATIONS_MAX = 1000

/** Faults that one answer tells. */
const FAULTS_MAX = 5

const ID_BYTES = 16
const REGISTRATION_ID = /^reg_[\w-]{22}$/

/** A new client_id. An underscore is in no document's name, so that the two never meet. */
export function registrationId(random: (bytes: number) => Buffer): string {
  return `reg_${random(ID_BYTES).toString('base64url')}`
}

/** Whether the text can be the client_id of a client that registered. */
export function isRegistrationId(text: string): boolean {
  return REGISTRATION_ID.test(text)
}

/** Registrations of one source: all of an hour may come at once. */
export function registrationRate(registrationsPerHour: number): Rate {
  return { burst: registrationsPerHour, intervalMs: HOUR_MS / registrationsPerHour }
}

/** When a self-registered client lapses that has just got a token or a pass; undefined: that is written down well enough. */
export function putOffLapse(lapsesAtMs: number, paid: boolean, nowMs: number): number | undefined {
  const wanted = nowMs + (paid ? PAID_LIFETIME_MS : IDLE_LIFETIME_MS)
  return wanted - lapsesAtMs >= LAPSE_STEP_MS ? wanted : undefined
}

/** Grants as clients write them, and as documents do. */
const GRANTS = {
  client_credentials: 'client_credentials',
  authorization_code: 'authorization_code',
  refresh_token: 'refresh_token',
  'urn:ietf:params:oauth:grant-type:device_code': 'device_code',
  'urn:ietf:params:oauth:grant-type:token-exchange': 'token_exchange',
} as const satisfies Record<string, Grant>

type GrantType = keyof typeof GRANTS

/** Fields of a document whose names are not those of the metadata in snake case. */
const METADATA_NAMES: Readonly<Record<string, string>> = {
  displayName: 'client_name',
  grants: 'grant_types',
  scopes: 'scope',
  authentication: 'token_endpoint_auth_method',
  certificateSubject: 'tls_client_auth_subject_dn',
  requirePushedAuthorization: 'require_pushed_authorization_requests',
  idTokenAlgorithm: 'id_token_signed_response_alg',
}

/** Of OpenID Connect: they open no API, so nobody has to allow them. */
const OIDC_SCOPES: ReadonlySet<string> = new Set(['openid', 'offline_access'])

/** Neither control nor format characters: a name must not write over, or hide, what a page says around it. */
const PLAIN_TEXT = /^[^\p{C}\p{Zl}\p{Zp}]*$/u

/** The metadata that mean something here (RFC 7591, section 2; others are ignored). Values are judged as a document's are. */
const MetadataSchema = z.object({
  client_name: z
    .string()
    .regex(PLAIN_TEXT, { error: 'has control characters' })
    .refine((text) => text.trim() !== '', { error: 'is empty' })
    .optional(),
  grant_types: z
    .array(z.enum(Object.keys(GRANTS) as GrantType[]))
    .min(1)
    .optional(),
  response_types: z.array(z.literal('code')).max(1).optional(),
  redirect_uris: z.unknown().optional(),
  post_logout_redirect_uris: z.unknown().optional(),
  scope: z.string().max(16_384).optional(),
  token_endpoint_auth_method: z.unknown().optional(),
  jwks: z.unknown().optional(),
  jwks_uri: z.undefined({ error: 'is not fetched here: send the keys themselves as jwks' }).optional(),
  tls_client_auth_subject_dn: z.unknown().optional(),
  tls_client_certificate_bound_access_tokens: z.boolean().optional(),
  dpop_bound_access_tokens: z.boolean().optional(),
  require_pushed_authorization_requests: z.unknown().optional(),
  id_token_signed_response_alg: z.unknown().optional(),
})
type Metadata = z.output<typeof MetadataSchema>

/** Reads client metadata within terms: never more than they say. What is left out becomes what the terms allow. */
export function specOf(body: Readonly<Record<string, unknown>>, terms: Terms): { spec: Spec } | MetadataFault {
  // RFC 7592, section 2.2: null means the same as leaving it out.
  const given = Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null))
  const read = MetadataSchema.safeParse(given)
  if (!read.success) return faultOf(read.error.issues)
  const metadata = read.data
  const grants = metadata.grant_types?.map((grant) => GRANTS[grant]) ?? defaultGrants(terms)
  const scopes = metadata.scope?.split(' ').filter((scope) => scope !== '' && !OIDC_SCOPES.has(scope)) ?? terms.scopes
  const excess = excessOf(grants, scopes, metadata, terms)
  if (excess !== undefined) return { error: 'invalid_client_metadata', description: excess }
  const result = ClientSchema.shape.spec.safeParse({
    ...present({
      displayName: metadata.client_name,
      redirectUris: metadata.redirect_uris,
      postLogoutRedirectUris: metadata.post_logout_redirect_uris,
      authentication: metadata.token_endpoint_auth_method,
      jwks: metadata.jwks,
      certificateSubject: metadata.tls_client_auth_subject_dn,
      senderConstraint: senderConstraintOf(metadata),
      requirePushedAuthorization: metadata.require_pushed_authorization_requests,
      idTokenAlgorithm: metadata.id_token_signed_response_alg,
    }),
    grants,
    scopes,
    audience: terms.audience,
  })
  return result.success ? { spec: result.data } : faultOf(result.error.issues)
}

/** RFC 7591, section 2: authorization_code, where that is allowed. */
function defaultGrants({ grants }: Terms): readonly Grant[] {
  return grants.includes('authorization_code') ? ['authorization_code'] : grants
}

function excessOf(
  grants: readonly Grant[],
  scopes: readonly string[],
  { response_types, tls_client_certificate_bound_access_tokens, dpop_bound_access_tokens }: Metadata,
  terms: Terms,
): string | undefined {
  const grant = grants.find((name) => !terms.grants.includes(name))
  if (grant !== undefined) return `grant_types: this registration may not have ${grant}`
  const scope = scopes.find((name) => !terms.scopes.includes(name))
  if (scope !== undefined) return `scope: this registration may have ${terms.scopes.join(' ') || 'none'}`
  if (response_types !== undefined && response_types.includes('code') !== grants.includes('authorization_code')) {
    return 'response_types: "code" goes with the grant authorization_code'
  }
  if (tls_client_certificate_bound_access_tokens && dpop_bound_access_tokens) {
    return 'dpop_bound_access_tokens: tokens are bound to a DPoP key or to a certificate, not to both'
  }
  return undefined
}

function senderConstraintOf(metadata: Metadata): Spec['senderConstraint'] {
  if (metadata.dpop_bound_access_tokens) return 'dpop'
  return metadata.tls_client_certificate_bound_access_tokens ? 'certificate' : undefined
}

/** What a client is told of its registration (RFC 7591, section 3.2.1), less its secrets. `audience` is ours. */
export function metadataOfRegistration({ clientId, spec, registeredAtMs }: Registration): Record<string, unknown> {
  const { grants, senderConstraint } = spec
  return present({
    client_id: clientId,
    client_id_issued_at: Math.floor(registeredAtMs / 1000),
    client_name: spec.displayName,
    grant_types: grants.map((grant) => Object.entries(GRANTS).find(([, name]) => name === grant)?.[0]),
    response_types: grants.includes('authorization_code') ? ['code'] : [],
    redirect_uris: spec.redirectUris,
    post_logout_redirect_uris: spec.postLogoutRedirectUris,
    scope: spec.scopes.join(' '),
    audience: spec.audience,
    token_endpoint_auth_method: spec.authentication,
    jwks: spec.jwks,
    tls_client_auth_subject_dn: spec.certificateSubject,
    tls_client_certificate_bound_access_tokens: senderConstraint === 'certificate' || undefined,
    dpop_bound_access_tokens: senderConstraint === 'dpop' || undefined,
    require_pushed_authorization_requests: spec.requirePushedAuthorization || undefined,
    id_token_signed_response_alg: grants.includes('authorization_code') ? spec.idTokenAlgorithm : undefined,
  })
}

function faultOf(issues: readonly z.core.$ZodIssue[]): MetadataFault {
  const told = issues.slice(0, FAULTS_MAX).map(({ path: [field, ...rest], message }) => {
    const name = String(field ?? 'metadata')
    return `${[METADATA_NAMES[name] ?? snakeCase(name), ...rest.map(String)].join('.')}: ${message}`
  })
  const redirect = issues.every(({ path: [field] }) => field === 'redirectUris' || field === 'postLogoutRedirectUris')
  return { error: redirect ? 'invalid_redirect_uri' : 'invalid_client_metadata', description: told.join('; ') }
}

function snakeCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
}

/** Without the members that are undefined. */
function present(members: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined))
}
