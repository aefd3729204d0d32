import { parseRange } from '@tollward/contracts'
import { RE2JS } from 're2js'
import { z } from 'zod'

/** Everything that documents have in common. */
export const API_VERSION = 'tollward.dev/v1'

/** DNS label, so that a name can also be a Kubernetes object's and a client_id. */
export const name = z.string().regex(/^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/, {
  error: 'a name has 1 to 63 lower-case letters, digits and hyphens, and starts and ends with a letter or digit',
})

const DURATION_UNITS_MS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const

/** A duration such as 30s, 15m, 2h or 1d; milliseconds in code. The longest is 365d. */
export const duration = z
  .string()
  .regex(/^[1-9]\d{0,8}(ms|s|m|h|d)$/, {
    abort: true,
    error: 'a duration is a whole number and ms, s, m, h or d, such as 15m',
  })
  .refine((text) => durationMs(text) <= 365 * DURATION_UNITS_MS.d, { error: 'a duration is at most 365d' })

/** Milliseconds of a duration as documents write it. The text must have passed the schema. */
export function durationMs(text: string): number {
  const match = /^(\d+)(ms|s|m|h|d)$/.exec(text)
  if (!match?.[1]) throw new RangeError(`not a duration: ${text}`)
  return Number(match[1]) * DURATION_UNITS_MS[match[2] as keyof typeof DURATION_UNITS_MS]
}

/** RFC 6749 scope-token. */
export const scope = z
  .string()
  .regex(/^[\x21\x23-\x5b\x5d-\x7e]{1,128}$/, { error: 'a scope has 1 to 128 visible ASCII characters but " and \\' })

const cidr = z.string().refine((text) => parseRange(text) !== undefined, {
  error: 'must be an address or a CIDR without host bits, such as 10.0.0.0/8',
})

/** A kind of document with everything that they have in common. */
export const document = <Kind extends string, Spec extends z.ZodType>(kind: Kind, spec: Spec) =>
  z.strictObject({
    apiVersion: z.literal(API_VERSION),
    kind: z.literal(kind),
    metadata: z.strictObject({ name, description: z.string().max(500).optional() }),
    spec,
  })

const method = z.enum(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'])

/** A limit by the generic cell rate algorithm: `requests` per `perSeconds`, all of which may come at once. */
const limit = z.strictObject({
  requests: z.int().min(1).max(1_000_000),
  perSeconds: z.int().min(1).max(86_400),
})

/** More of them would make matching slow: each may end anywhere. */
const GLOBSTARS_MAX = 2

/** Literal segments and {parameters}; a parameter is one segment. */
const pathTemplate = z
  .string()
  .max(1024)
  .regex(
    /^\/(?:(?:[A-Za-z0-9._~!$&'()*+,=:@-]+|\{[a-z][a-zA-Z0-9_]*\})(?:\/(?:[A-Za-z0-9._~!$&'()*+,=:@-]+|\{[a-z][a-zA-Z0-9_]*\}))*)?$/,
    {
      error: 'a path starts with / and has segments of plain characters or {name}, none of them empty',
    },
  )

/** Literal segments in which * stands for any characters but /, and segments ** that stand for any number of segments. */
const pathGlob = z
  .string()
  .max(1024)
  .regex(/^\/(?:(?:\*\*|(?!\*\*)[A-Za-z0-9._~!$&'()*+,=:@-]+)(?:\/(?:\*\*|[A-Za-z0-9._~!$&'()*+,=:@-]+))*)?$/, {
    error: 'a glob starts with / and has segments of plain characters and *, or **, none of them empty',
  })
  .refine((glob) => glob.split('/').every((segment) => segment === '**' || !segment.includes('**')), {
    error: '** stands for whole segments: write /a/**/b',
  })
  .refine((glob) => glob.split('/').filter((segment) => segment === '**').length <= GLOBSTARS_MAX, {
    error: `a glob has at most ${GLOBSTARS_MAX} segments **`,
  })

export const headerName = z
  .string()
  .regex(/^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}$/, { error: 'is no name of a header field' })

/** RE2 syntax: matching takes time in proportion to the text. */
const pattern = z
  .string()
  .min(1)
  .max(1024)
  .superRefine((text, context) => {
    try {
      RE2JS.compile(text)
    } catch (error) {
      const message = `is no regular expression of RE2: ${error instanceof Error ? error.message : String(error)}`
      context.addIssue({ code: 'custom', message })
    }
  })

const comparison = {
  /** The whole value. */
  equals: z.string().max(1024).optional(),
  /** The whole value is one of these. */
  oneOf: z.array(z.string().max(1024)).min(1).max(1000).optional(),
  /** The whole value, as a regular expression in RE2 syntax. */
  matches: pattern.optional(),
  /** Whether it is there at all. */
  present: z.boolean().optional(),
} as const

const COMPARISONS = Object.keys(comparison) as (keyof typeof comparison)[]

const comparesOnce = {
  fits: (value: Readonly<Record<string, unknown>>) =>
    COMPARISONS.filter((way) => value[way] !== undefined).length === 1,
  error: `give exactly one of ${COMPARISONS.join(', ')}`,
} as const

/** A claim of the token, such as "tenant" or "realm_access.roles"; of a list it is enough that one element compares. */
const claimName = z.string().min(1).max(256)

const claimCondition = z
  .strictObject({ claim: claimName, ...comparison })
  .refine(comparesOnce.fits, { error: comparesOnce.error })

const CONDITION_SUBJECTS = ['header', 'query', 'claim'] as const

const condition = z
  .strictObject({
    header: headerName.optional(),
    /** A query parameter, its value percent-decoded once; one that comes twice compares with nothing. */
    query: z.string().min(1).max(256).optional(),
    claim: claimName.optional(),
    ...comparison,
  })
  .refine((value) => CONDITION_SUBJECTS.filter((subject) => value[subject] !== undefined).length === 1, {
    error: `give exactly one of ${CONDITION_SUBJECTS.join(', ')}`,
  })
  .refine(comparesOnce.fits, { error: comparesOnce.error })

/** Identity of a workload, with * for the rest of it: spiffe://example.org/ns/shop/* */
const principal = z
  .string()
  .max(2048)
  .regex(/^[\x21-\x29\x2b-\x7e]+\*?$/, {
    error: 'is the name of a workload, such as spiffe://example.org/ns/shop/sa/web',
  })

/** What a rule compares. All of it must hold. */
const match = z
  .strictObject({
    methods: z.array(method).min(1).optional(),
    path: pathTemplate.optional(),
    /** Whole segments: /a matches /a and /a/b, not /ab. */
    prefix: pathTemplate.optional(),
    glob: pathGlob.optional(),
    /** Header values, compared exactly; names in any case. */
    headers: z.record(headerName, z.string().max(1024)).optional(),
    conditions: z.array(condition).min(1).max(20).optional(),
    /** Client addresses. */
    sources: z.array(cidr).min(1).max(1000).optional(),
    /** The workload that the client's certificate names, verified by whoever asks. */
    principals: z.array(principal).min(1).max(1000).optional(),
    /** Of a SPIFFE id as Kubernetes meshes write it: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT. */
    namespaces: z.array(name).min(1).max(1000).optional(),
    /** Names of GraphQL operations; the whole body must be there. */
    graphqlOperations: z
      .array(z.string().regex(/^[_A-Za-z][_0-9A-Za-z]{0,127}$/, { error: 'is no name of a GraphQL operation' }))
      .min(1)
      .max(1000)
      .optional(),
    /** Methods of JSON-RPC 2.0, such as tools/call of MCP, with * for the rest; the whole body must be there. */
    rpcMethods: z
      .array(z.string().regex(/^[\x21-\x29\x2b-\x7e]{1,128}\*?$/, { error: 'is no name of a JSON-RPC method' }))
      .min(1)
      .max(1000)
      .optional(),
    /** Tools that tools/call of MCP names, with * for the rest. */
    tools: z
      .array(z.string().regex(/^[\x21-\x29\x2b-\x7e]{1,128}\*?$/, { error: 'is no name of a tool' }))
      .min(1)
      .max(1000)
      .optional(),
  })
  .refine((value) => [value.path, value.prefix, value.glob].filter((way) => way !== undefined).length === 1, {
    error: 'give exactly one of path, prefix and glob',
  })
  .refine((value) => value.graphqlOperations === undefined || (value.rpcMethods ?? value.tools) === undefined, {
    error: 'a body is GraphQL or JSON-RPC, not both',
  })

/** Who is counted together: all requests of a client, person, token or address, or all that the rule admits. */
const limitedBy = z.enum(['client', 'subject', 'token', 'source', 'route'])

const ruleLimit = limit.extend({ by: limitedBy })

/** What rules may not set or remove: it is decided by whoever forwards, or it says who calls. */
const RESERVED_HEADERS = new Set([
  'authorization',
  'connection',
  'content-length',
  'dpop',
  'forwarded',
  'host',
  'keep-alive',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  'x-bitcoin-txid',
])

const rewrittenHeader = headerName.refine(
  (text) => {
    const lower = text.toLowerCase().replaceAll('_', '-')
    return !RESERVED_HEADERS.has(lower) && !/^x-(tollward|forwarded|envoy)-/.test(lower)
  },
  { error: 'is a header that no rule may set or remove' },
)

/** Visible ASCII: no value ends a field or begins another. */
const headerText = z
  .string()
  .max(4096)
  .regex(/^[\x20-\x7e]*$/, { error: 'has characters that no header may have' })

const queryText = z.string().max(1024)

/** How an admitted request goes on to the API. */
const rewrite = z
  .strictObject({
    /** In the place of the whole path; {parameters} are those of match.path. */
    path: pathTemplate.optional(),
    /** In the place of match.prefix. */
    prefix: pathTemplate.optional(),
    query: z
      .strictObject({
        set: z.record(queryText.min(1), queryText).optional(),
        remove: z.array(queryText.min(1)).optional(),
      })
      .optional(),
    headers: z
      .strictObject({
        set: z.record(rewrittenHeader, headerText).optional(),
        remove: z.array(rewrittenHeader).optional(),
      })
      .optional(),
    /** Set on the API's answer. */
    responseHeaders: z.strictObject({ set: z.record(rewrittenHeader, headerText) }).optional(),
  })
  .refine((value) => value.path === undefined || value.prefix === undefined, { error: 'give either path or prefix' })

/** All limits of a rule. */
export function limitsOf<L>({
  limit,
  limits,
}: {
  readonly limit?: L | undefined
  readonly limits?: readonly L[] | undefined
}) {
  return limits ?? (limit === undefined ? [] : [limit])
}

const rule = z
  .strictObject({
    name,
    match,
    /** Nobody needs to be known. */
    anonymous: z.literal(true).optional(),
    require: z
      .strictObject({
        token: z.strictObject({
          scopes: z.array(scope).optional(),
          audience: z.string().min(1).max(512).optional(),
          claims: z.array(claimCondition).min(1).max(20).optional(),
          /** The token must be bound to a key, and the key proved: by DPoP (RFC 9449), certificate (RFC 8705), or either. */
          boundTo: z.enum(['dpop', 'certificate', 'any']).optional(),
        }),
        payment: z.strictObject({ plan: name }).optional(),
      })
      .optional(),
    deny: z.strictObject({ reason: z.string().min(1).max(300) }).optional(),
    limit: ruleLimit.optional(),
    /** Several, all of which hold. */
    limits: z.array(ruleLimit).min(1).max(8).optional(),
    rewrite: rewrite.optional(),
  })
  .refine((value) => value.limit === undefined || value.limits === undefined, { error: 'give either limit or limits' })
  .refine(
    ({ match: { path = '' }, rewrite: { path: rewritten = '' } = {} }) => {
      const known = path.split('/')
      return rewritten.split('/').every((segment) => !segment.startsWith('{') || known.includes(segment))
    },
    { path: ['rewrite', 'path'], error: 'has a {parameter} that match.path does not have' },
  )
  .refine((value) => value.rewrite?.prefix === undefined || value.match.prefix !== undefined, {
    path: ['rewrite', 'prefix'],
    error: 'is for rules that match a prefix',
  })
  .refine(
    (value) => value.anonymous === undefined || !limitsOf(value).some(({ by }) => by !== 'source' && by !== 'route'),
    {
      error: 'nobody is known here: limit by source or route',
    },
  )
  .refine((value) => [value.anonymous, value.require, value.deny].filter((way) => way !== undefined).length === 1, {
    error: 'give exactly one of anonymous, require and deny',
  })

/** A host name, "*.example.com" for any name below it, or "*" for all. Without port. */
const host = z
  .string()
  .max(253)
  .regex(/^(\*|(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*|\[[0-9a-f:.]+\])$/, {
    error: 'a host is a lower-case name without port, "*.name", or "*"',
  })

export const ApiPolicySchema = document(
  'ApiPolicy',
  z.strictObject({
    hosts: z.array(host).min(1).max(1000),
    /** observe: decide and record, but let through. */
    mode: z.enum(['enforce', 'observe']).default('enforce'),
    /** For each source address, before anything else is looked at. */
    sourceLimit: limit.optional(),
    rules: z
      .array(rule)
      .min(1)
      .max(10_000)
      .superRefine((rules, context) => {
        const seen = new Set<string>()
        for (const [index, { name }] of rules.entries()) {
          if (seen.has(name))
            context.addIssue({ code: 'custom', path: [index, 'name'], message: 'is the name of an earlier rule' })
          seen.add(name)
        }
      }),
  }),
)

/** Below 546 sats an output is dust, which nodes do not relay. */
export const DUST_SATS = 546n
const amountSats = z.int().min(Number(DUST_SATS)).max(2_100_000_000_000_000)
const confirmations = z.int().min(1).max(100)

/** Amounts from which on more confirmations are needed, in ascending order. */
const moreConfirmations = z
  .array(z.strictObject({ fromSats: amountSats, confirmations }))
  .max(10)
  .superRefine((steps, context) => {
    for (const [index, { fromSats }] of steps.entries()) {
      if (fromSats <= (steps[index - 1]?.fromSats ?? 0))
        context.addIssue({
          code: 'custom',
          path: [index, 'fromSats'],
          message: 'has to be more than in the step before',
        })
    }
  })

/** Hundredths of a percent; nothing is given away for nothing. */
const basisPoints = z.int().min(0).max(9000)

const discounts = z.strictObject({
  /** For paying in bitcoin. */
  bitcoin: basisPoints.default(0),
  /** For conduct: in full from a score of 1000 on, in proportion between minimumScore and that, below it nothing. */
  conduct: z
    .strictObject({
      basisPoints: basisPoints.min(1),
      minimumScore: z.int().min(0).max(999).default(500),
      /** Since the client was first seen. */
      minimumAge: duration.default('7d'),
      /** In settled payments: having many clients must cost more than it saves. */
      minimumPaidSats: z.int().min(0).max(2_100_000_000_000_000).default(0),
    })
    .optional(),
  /** All discounts together. */
  cap: basisPoints.default(9000),
  /** No discount leads below. */
  floorSats: amountSats.default(Number(DUST_SATS)),
})

export const PlanSchema = document(
  'Plan',
  z
    .strictObject({
      priceSats: amountSats,
      /** How many requests the pass is good for; absent: as many as its duration allows. */
      requests: z.int().min(1).max(1_000_000_000).optional(),
      duration: duration.optional(),
      confirmations,
      moreConfirmations: moreConfirmations.default([]),
      /** The transaction must be seen within this time after the invoice. */
      payWithin: duration,
      /** Its last needed confirmation must have a median time past within this time after the invoice. */
      confirmWithin: duration,
      /** Or it must come within so many blocks: with both, one of them is enough, because nobody can make blocks come faster. */
      confirmWithinBlocks: z.int().min(1).max(10_000).optional(),
      /** From the invoice on; a payment that is not redeemed by then becomes credit. */
      redeemWithin: duration.default('30d'),
      discounts: discounts.prefault({}),
      /** Which money that bought nothing becomes the client's credit; the rest stays on record for the operator. */
      credit: z
        .strictObject({
          late: z.boolean().default(true),
          short: z.boolean().default(true),
          excess: z.boolean().default(true),
        })
        .prefault({}),
    })
    .refine((spec) => spec.requests !== undefined || spec.duration !== undefined, {
      error: 'give requests, duration, or both: a pass has to end',
    }),
)

/** Scopes with this prefix open Tollward's own administration. Only the operator's client has them. */
export const RESERVED_SCOPE_PREFIX = 'tollward.'

const grantedScope = scope.refine((text) => !text.startsWith(RESERVED_SCOPE_PREFIX), {
  error: `scopes that begin with "${RESERVED_SCOPE_PREFIX}" are the operator's alone`,
})

const audience = z.string().min(1).max(512)

const LOOPBACK = new Set(['127.0.0.1', '[::1]', 'localhost'])

/** Compared character by character (RFC 9700, section 2.1). */
const redirectUri = z
  .url({ abort: true, error: 'is no absolute URI' })
  .max(2048)
  .refine((text) => !text.includes('#'), { error: 'a redirect URI has no fragment' })
  .refine(
    (text) => {
      const { protocol, hostname } = new URL(text)
      if (protocol === 'http:') return LOOPBACK.has(hostname)
      // RFC 8252, section 7.1: a private scheme is a domain name reversed, so it has a dot.
      return protocol === 'https:' || protocol.includes('.')
    },
    {
      error: 'a redirect URI is https, http to the loopback, or of a private scheme such as com.example.app:/callback',
    },
  )

/** A name as RFC 4514 writes it; `openssl x509 -noout -subject -nameopt RFC2253` prints a certificate's. */
const distinguishedName = z
  .string()
  .max(1024)
  .regex(/^([A-Za-z][-A-Za-z0-9]*|\d+(\.\d+)+)\s*=/, {
    error: 'is a name as RFC 4514 writes it, the most specific part first, such as CN=shop,O=Example',
  })

/** Public keys only (RFC 7517): of a private one nobody but its owner may know. */
const publicKeySet = z.strictObject({
  keys: z
    .array(
      z
        .looseObject({ kty: z.enum(['EC', 'OKP', 'RSA']), kid: z.string().min(1).max(256).optional() })
        .refine((key) => !('d' in key) && !('k' in key), { error: 'is a private key; give its public part' }),
    )
    .min(1)
    .max(10),
})

/** 256 bits are 43 characters of base64url, 2048 are 342. */
const BITS_256 = /^[\w-]{43}$/
const BITS_2048 = /^[\w-]{342,}$/

/** What keeps a key from checking the assertions of private_key_jwt: ES256, EdDSA, RS256 or PS256. */
function assertionKeyFault(key: { readonly kty: string; readonly [member: string]: unknown }): string | undefined {
  const has = (member: string, form: RegExp) => form.test(String(key[member] ?? ''))
  if (key.kty === 'EC')
    return key.crv === 'P-256' && has('x', BITS_256) && has('y', BITS_256)
      ? undefined
      : 'has to be of P-256, with x and y'
  if (key.kty === 'OKP') return key.crv === 'Ed25519' && has('x', BITS_256) ? undefined : 'has to be of Ed25519, with x'
  return has('n', BITS_2048) && has('e', /^[\w-]+$/) ? undefined : 'has to have n of 2048 bits at least, and e'
}

/** What keeps a key from being that of a certificate that a client makes itself. */
function certificateKeyFault({ x5c }: { readonly [member: string]: unknown }): string | undefined {
  return Array.isArray(x5c) && typeof x5c[0] === 'string' && /^[A-Za-z0-9+/]{100,}=*$/.test(x5c[0])
    ? undefined
    : 'needs the certificate as x5c: DER in base64, without the lines that begin and end a PEM'
}

const CERTIFICATE_AUTHENTICATION = new Set(['tls_client_auth', 'self_signed_tls_client_auth'])
const SECRET_AUTHENTICATION = new Set(['client_secret_basic', 'client_secret_post'])
const KEY_SET_AUTHENTICATION = new Set(['private_key_jwt', 'self_signed_tls_client_auth'])

export const ClientSchema = document(
  'Client',
  z
    .strictObject({
      /** What a consent page calls it. */
      displayName: z.string().min(1).max(100).optional(),
      grants: z
        .array(z.enum(['client_credentials', 'authorization_code', 'refresh_token', 'device_code', 'token_exchange']))
        .min(1),
      redirectUris: z.array(redirectUri).max(20).default([]),
      postLogoutRedirectUris: z.array(redirectUri).max(20).default([]),
      scopes: z.array(grantedScope).max(100).default([]),
      /** Resource servers its tokens are for. */
      audience: z.array(audience).max(20).default([]),
      authentication: z
        .enum([
          'client_secret_basic',
          'client_secret_post',
          'private_key_jwt',
          'tls_client_auth',
          'self_signed_tls_client_auth',
          'none',
        ])
        .default('client_secret_basic'),
      /** For private_key_jwt, and certificates (x5c) of self_signed_tls_client_auth. */
      jwks: publicKeySet.optional(),
      /** For tls_client_auth: the subject of its certificate as RFC 4514 writes it. */
      certificateSubject: distinguishedName.optional(),
      /** Its tokens are worth something only with a proof: a DPoP key (RFC 9449) or its client certificate (RFC 8705). */
      senderConstraint: z.enum(['dpop', 'certificate']).optional(),
      requirePushedAuthorization: z.boolean().default(false),
      idTokenAlgorithm: z.enum(['ES256', 'EdDSA']).default('ES256'),
      tokenLifetime: duration.default('10m'),
      /** Of each refresh token; using it gives a new one. */
      refreshLifetime: duration.default('14d'),
      /** Audiences whose tokens it may introspect, besides its own tokens. */
      introspects: z.array(audience).max(20).default([]),
      disabled: z.boolean().default(false),
    })
    .superRefine((spec, context) => {
      const fault = (path: string, message: string) => context.addIssue({ code: 'custom', path: [path], message })
      const { authentication, grants } = spec
      if (grants.includes('authorization_code') !== spec.redirectUris.length > 0)
        fault('redirectUris', 'are for the grant authorization_code, and it needs one at least')
      if (grants.includes('refresh_token') && !grants.includes('authorization_code') && !grants.includes('device_code'))
        fault(
          'grants',
          'refresh_token comes with authorization_code or device_code: only people have something to refresh',
        )
      if (
        authentication === 'none' &&
        grants.some((grant) => grant === 'client_credentials' || grant === 'token_exchange')
      )
        fault('authentication', 'a client without authentication cannot act for itself')
      if (spec.introspects.length > 0 && !SECRET_AUTHENTICATION.has(authentication))
        fault('introspects', 'needs authentication by secret: the introspection endpoint takes no other')
      if (KEY_SET_AUTHENTICATION.has(authentication) !== (spec.jwks !== undefined))
        fault('jwks', 'is for private_key_jwt and self_signed_tls_client_auth, and they need it')
      const keyFault = authentication === 'private_key_jwt' ? assertionKeyFault : certificateKeyFault
      for (const [index, key] of (spec.jwks?.keys ?? []).entries()) {
        const message = KEY_SET_AUTHENTICATION.has(authentication) ? keyFault(key) : undefined
        if (message) context.addIssue({ code: 'custom', path: ['jwks', 'keys', index], message })
      }
      if ((authentication === 'tls_client_auth') !== (spec.certificateSubject !== undefined))
        fault('certificateSubject', 'is for tls_client_auth, and it needs one')
      if (spec.senderConstraint === 'certificate' && !CERTIFICATE_AUTHENTICATION.has(authentication))
        fault('senderConstraint', 'certificate needs authentication by certificate')
    }),
)

export const DetectorSettingsSchema = document(
  'DetectorSettings',
  z.strictObject({
    connectionFlood: z
      .strictObject({
        /** New connections, completed by the kernel, from one address. */
        connections: z.int().min(10).max(1_000_000),
        withinSeconds: z.int().min(1).max(60),
        blockFor: duration,
        /** observe: raise the alert, write no block. */
        mode: z.enum(['block', 'observe']).default('block'),
      })
      .optional(),
    portScan: z
      .strictObject({
        /** Different destination ports that one address tried. */
        ports: z.int().min(5).max(65_535),
        withinSeconds: z.int().min(1).max(3600),
      })
      .optional(),
    /** Sources that are never blocked by a machine. */
    allow: z.array(cidr).max(10_000).default([]),
  }),
)

/** One schema a kind; the same text is a file, an argument of the CLI, and later a Kubernetes object. */
export const KINDS = {
  ApiPolicy: ApiPolicySchema,
  Plan: PlanSchema,
  Client: ClientSchema,
  DetectorSettings: DetectorSettingsSchema,
} as const

export type Kind = keyof typeof KINDS
export type ApiPolicy = z.infer<typeof ApiPolicySchema>
export type Plan = z.infer<typeof PlanSchema>
export type Client = z.infer<typeof ClientSchema>
export type DetectorSettings = z.infer<typeof DetectorSettingsSchema>
export type TollwardDocument = ApiPolicy | Plan | Client | DetectorSettings
