import { RE2JS } from 're2js'
import { z } from 'zod'
import { cidr, document, name, scope } from './parts.ts'

const method = z.enum(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'])

/** A limit by the generic cell rate algorithm: `requests` per `perSeconds`, all of which may come at once. */
const limit = z.strictObject({
  requests: z.int().min(1).max(1_000_000),
  perSeconds: z.int().min(1).max(86_400),
})

/** More of them would make matching slow: each may end anywhere. */
const GLOBSTARS_MAX = 2
/** Segments of a glob: between two ** they are looked for at every place of a path. */
const GLOB_SEGMENTS_MAX = 32

const DOT_SEGMENTS = {
  fits: (path: string) => !path.split('/').some((segment) => segment === '.' || segment === '..'),
  error: 'has a segment of one or two dots, which no request has',
} as const

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
  .refine(DOT_SEGMENTS.fits, { error: DOT_SEGMENTS.error })

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
  .refine((glob) => glob.split('/').length <= GLOB_SEGMENTS_MAX + 1, {
    error: `a glob has at most ${GLOB_SEGMENTS_MAX} segments`,
  })
  .refine(DOT_SEGMENTS.fits, { error: DOT_SEGMENTS.error })

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

const queryText = z
  .string()
  .max(1024)
  .refine((text) => text.isWellFormed(), { error: 'is not well-formed Unicode' })

/** How an admitted request goes on to the API. */
const rewrite = z
  .strictObject({
    /** In the place of the whole path; {parameters} are those of match.path. */
    path: pathTemplate.optional(),
    /** In the place of match.prefix; {parameters} are those of match.prefix. */
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
      .refine(
        ({ set = {}, remove = [] }) => {
          const isSet = new Set(Object.keys(set).map((header) => header.toLowerCase()))
          return remove.every((header) => !isSet.has(header.toLowerCase()))
        },
        { error: 'a header is either set or removed' },
      )
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

/** Whether all {parameters} of a rewritten path are those of the path that is matched. */
function hasParameters(matched = '', rewritten = ''): boolean {
  const known = new Set(matched.split('/'))
  return rewritten.split('/').every((segment) => !segment.startsWith('{') || known.has(segment))
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
    limits: z
      .array(ruleLimit)
      .min(1)
      .max(8)
      .refine((limits) => new Set(limits.map(({ by, perSeconds }) => `${by} ${perSeconds}`)).size === limits.length, {
        error: 'two of them count by the same in the same time',
      })
      .optional(),
    rewrite: rewrite.optional(),
  })
  .refine((value) => value.limit === undefined || value.limits === undefined, { error: 'give either limit or limits' })
  .refine(({ match, rewrite }) => hasParameters(match.path, rewrite?.path), {
    path: ['rewrite', 'path'],
    error: 'has a {parameter} that match.path does not have',
  })
  .refine(({ match, rewrite }) => hasParameters(match.prefix, rewrite?.prefix), {
    path: ['rewrite', 'prefix'],
    error: 'has a {parameter} that match.prefix does not have',
  })
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
  .refine(
    (value) => value.anonymous === undefined || !value.match.conditions?.some(({ claim }) => claim !== undefined),
    {
      path: ['match', 'conditions'],
      error: 'compare a claim, but nobody is known where a rule is anonymous: give require',
    },
  )
  .refine((value) => value.deny === undefined || (value.limits ?? value.rewrite) === undefined, {
    error: 'a rule that denies admits nothing that could be limited or rewritten',
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

export type ApiPolicy = z.infer<typeof ApiPolicySchema>
