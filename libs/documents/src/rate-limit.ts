import { z } from 'zod'
import { document, name } from './parts.ts'

/** More of them would be no limit that anybody can follow. */
const ENTRIES_MAX = 8

const entry = z.strictObject({
  /** As the proxy's descriptor has it, such as remote_address. */
  key: z.string().min(1).max(256),
  /** Without it, each value counts apart. */
  value: z.string().min(1).max(1024).optional(),
})

const rule = z.strictObject({
  name,
  /** All entries of a descriptor, in its order. */
  entries: z.array(entry).min(1).max(ENTRIES_MAX),
  /** By the generic cell rate algorithm: `requests` per `perSeconds`, all of which may come at once. */
  limit: z.strictObject({
    requests: z.int().min(1).max(1_000_000),
    perSeconds: z.int().min(1).max(86_400),
  }),
})

/** Limits alone, for proxies that ask Envoy's rate limit service. */
export const RateLimitSchema = document(
  'RateLimit',
  z.strictObject({
    /** What the proxy's filter calls it. */
    domain: z.string().min(1).max(256),
    /** observe: count and tell in metrics, but let through. */
    mode: z.enum(['enforce', 'observe']).default('enforce'),
    rules: z
      .array(rule)
      .min(1)
      .max(10_000)
      .superRefine((rules, context) => {
        const [names, entries] = [new Set<string>(), new Set<string>()]
        for (const [index, rule] of rules.entries()) {
          const same = JSON.stringify(rule.entries.map(({ key, value }) => [key, value ?? null]))
          if (names.has(rule.name))
            context.addIssue({ code: 'custom', path: [index, 'name'], message: 'is the name of an earlier rule' })
          if (entries.has(same))
            context.addIssue({ code: 'custom', path: [index, 'entries'], message: 'are those of an earlier rule' })
          names.add(rule.name)
          entries.add(same)
        }
      }),
  }),
)

export type RateLimit = z.infer<typeof RateLimitSchema>
