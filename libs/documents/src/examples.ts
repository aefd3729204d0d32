import { parseAddress } from '@tollward/contracts'
import { z } from 'zod'
import { headerName } from './api-policy.ts'
import { document, name, scope } from './parts.ts'

/** The kind of document that holds examples of a policy. It is never applied. */
export const EXAMPLES_KIND = 'PolicyExamples'

/** RFC 9110, 5.6.2. */
const token = z.string().regex(/^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$/, { error: 'is no method, such as GET' })

/** Not in canonical form: how a request is spelled may be what the example is about. */
const url = z
  .string()
  .max(16_384)
  .regex(/^https?:\/\/[^/?#\s]+([/?]|$)/, { error: 'is a whole URL, such as https://api.example/orders/7' })

const address = z.string().refine((text) => parseAddress(text) !== undefined, { error: 'is no IP address' })

const headerValue = z.string().max(65_536)

/** What is asked, and from where. */
const request = z.strictObject({
  method: token.default('GET'),
  url,
  /** A list sends the header that many times. */
  headers: z
    .record(
      headerName,
      z.union([headerValue, z.array(headerValue).max(100)], { error: 'is a text, or a list of texts' }),
    )
    .default({}),
  from: address.default('192.0.2.1'),
  /** Of the client's certificate, as a mesh verified it. */
  principal: z.string().min(1).max(2048).optional(),
  body: z.string().max(1_048_576).optional(),
  /** false: the proxy sent only the beginning of the body. */
  bodyIsWhole: z.boolean().default(true),
  /** The address is on the block list. */
  isBlocked: z.boolean().default(false),
})

/** Whose access token the request carries, and what that says. */
const caller = z.strictObject({
  client: z.string().min(1).max(256),
  /** Absent: the client acts for itself. */
  subject: z.string().min(1).max(256).optional(),
  scopes: z.array(scope).max(100).default([]),
  audience: z.array(z.string().min(1).max(512)).max(20).default([]),
  claims: z.record(z.string().min(1).max(256), z.unknown()).default({}),
  /** The token is bound to a key of this kind, and the key is proved. */
  boundTo: z.enum(['dpop', 'certificate']).optional(),
  selfRegistered: z.boolean().default(false),
  /** Plans of which the client has a pass that is good. */
  passes: z.array(name).max(100).default([]),
  /** The client, person or token is on the block list. */
  isBlocked: z.boolean().default(false),
})

/** What the decision must be. What is not given may be anything. */
const expectation = z
  .strictObject({
    outcome: z.enum(['admitted', 'refused', 'would-refuse']).optional(),
    /** Of a refusal. */
    status: z.int().min(400).max(599).optional(),
    reason: z.string().min(1).max(64).optional(),
    /** policy/rule, or none. */
    rule: z.string().min(1).max(130).optional(),
    /** Path and query that the API is asked for. */
    target: z.string().startsWith('/').max(16_384).optional(),
    /** Headers that the API gets beside or in the place of the client's; null: must not be among them. */
    upstreamHeaders: z.record(headerName, headerValue.nullable()).optional(),
    /** Headers that the client gets beside the API's own, or with its refusal. */
    responseHeaders: z.record(headerName, headerValue.nullable()).optional(),
  })
  .refine((value) => Object.keys(value).length > 0, { error: 'expects nothing; give an outcome at least' })

const example = z.strictObject({
  name: z.string().min(1).max(200),
  request,
  /** Absent: nobody who is known. */
  caller: caller.optional(),
  expect: expectation,
})

export const PolicyExamplesSchema = document(
  EXAMPLES_KIND,
  z.strictObject({
    /** Files beside this one; of the documents in them the policies count. */
    policies: z.array(z.string().min(1).max(4096)).min(1).max(100),
    examples: z
      .array(example)
      .min(1)
      .max(10_000)
      .superRefine((examples, context) => {
        const seen = new Set<string>()
        for (const [index, { name }] of examples.entries()) {
          if (seen.has(name))
            context.addIssue({ code: 'custom', path: [index, 'name'], message: 'is the name of an earlier example' })
          seen.add(name)
        }
      }),
  }),
)

/** Examples written next to policies. */
export type PolicyExamples = z.infer<typeof PolicyExamplesSchema>
export type PolicyExample = PolicyExamples['spec']['examples'][number]
