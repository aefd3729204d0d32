import { parseRange } from '@tollward/contracts'
import { z } from 'zod'

/** Everything that documents have in common. */
export const API_VERSION = 'tollward.dev/v1'

/** DNS label, so that a name can also be a Kubernetes object's and a client_id. */
const name = z.string().regex(/^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/, {
  error: 'a name has 1 to 63 lower-case letters, digits and hyphens, and starts and ends with a letter or digit',
})

const DURATION_UNITS_MS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const

/** A duration such as 30s, 15m, 2h or 1d; milliseconds in code. The longest is 365d. */
const duration = z
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
const scope = z
  .string()
  .regex(/^[\x21\x23-\x5b\x5d-\x7e]{1,128}$/, { error: 'a scope has 1 to 128 visible ASCII characters but " and \\' })

const cidr = z.string().refine((text) => parseRange(text) !== undefined, {
  error: 'must be an address or a CIDR without host bits, such as 10.0.0.0/8',
})

const document = <Kind extends string, Spec extends z.ZodType>(kind: Kind, spec: Spec) =>
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

const match = z
  .strictObject({
    methods: z.array(method).min(1).optional(),
    path: pathTemplate.optional(),
    /** Whole segments: /a matches /a and /a/b, not /ab. */
    prefix: pathTemplate.optional(),
    /** Header values, compared exactly; names in any case. */
    headers: z.record(z.string().regex(/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/), z.string().max(1024)).optional(),
  })
  .refine((value) => (value.path === undefined) !== (value.prefix === undefined), {
    error: 'give either path or prefix',
  })

const rule = z
  .strictObject({
    name,
    match,
    /** Nobody needs to be known. */
    anonymous: z.literal(true).optional(),
    require: z
      .strictObject({
        token: z.strictObject({ scopes: z.array(scope).optional(), audience: z.string().min(1).max(512).optional() }),
        payment: z.strictObject({ plan: name }).optional(),
      })
      .optional(),
    deny: z.strictObject({ reason: z.string().min(1).max(300) }).optional(),
    limit: limit.extend({ by: z.enum(['client', 'source']) }).optional(),
  })
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

export const PlanSchema = document(
  'Plan',
  z
    .strictObject({
      /** Below 546 sats an output is dust, which nodes do not relay. */
      priceSats: z.int().min(546).max(2_100_000_000_000_000),
      /** How many requests the pass is good for; absent: as many as its duration allows. */
      requests: z.int().min(1).max(1_000_000_000).optional(),
      duration: duration.optional(),
      confirmations: z.int().min(1).max(100),
      /** The transaction must be seen within this time after the invoice. */
      payWithin: duration,
      /** Its last needed confirmation must have a median time past within this time after the invoice. */
      confirmWithin: duration,
    })
    .refine((spec) => spec.requests !== undefined || spec.duration !== undefined, {
      error: 'give requests, duration, or both: a pass has to end',
    }),
)

export const ClientSchema = document(
  'Client',
  z.strictObject({
    grants: z.array(z.enum(['client_credentials'])).min(1),
    scopes: z.array(scope).max(100).default([]),
    /** Resource servers its tokens are for. */
    audience: z.array(z.string().min(1).max(512)).max(20).default([]),
    authentication: z.enum(['client_secret_basic', 'client_secret_post']).default('client_secret_basic'),
    tokenLifetime: duration.default('10m'),
    disabled: z.boolean().default(false),
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
