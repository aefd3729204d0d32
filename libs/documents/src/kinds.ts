import { z } from 'zod'
import { type ApiPolicy, ApiPolicySchema } from './api-policy.ts'
import { type KernelRule, KernelRuleSchema } from './kernel-rule.ts'
import { cidr, document, duration, scope } from './parts.ts'
import { type RateLimit, RateLimitSchema } from './rate-limit.ts'

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
  RateLimit: RateLimitSchema,
  KernelRule: KernelRuleSchema,
} as const

export type Kind = keyof typeof KINDS
export type Plan = z.infer<typeof PlanSchema>
export type Client = z.infer<typeof ClientSchema>
export type DetectorSettings = z.infer<typeof DetectorSettingsSchema>
export type TollwardDocument = ApiPolicy | Plan | Client | DetectorSettings | RateLimit | KernelRule
