import { parseRange } from '@tollward/contracts'
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

export const cidr = z.string().refine((text) => parseRange(text) !== undefined, {
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
