import { formatRange, parseRange } from '@tollward/contracts'
import { z } from 'zod'
import { cidr, document, duration } from './parts.ts'

/** Rules of each direction that the kernel programs of a node have room for. */
export const KERNEL_RULES_MAX = 1024
/** Ranges of addresses of one list: each is an entry of a prefix trie in every node's kernel. */
const RANGES_MAX = 1000
/** Ranges of ports of one rule: the kernel compares each with each packet that comes so far. */
const PORTS_MAX = 16
/** What one core of a kernel can pass on in a second, generously. */
const PACKETS_MAX = 10_000_000
const PRIORITY_MAX = 65_535

const PORT_ERROR = { error: 'must be a port from 1 to 65535, or a range of them such as 8000-8999' }

/** A port, or a range of them such as 8000-8999. */
const ports = z.union(
  [
    z.int().min(1).max(65_535),
    z
      .string()
      .regex(/^\d{1,5}-\d{1,5}$/, PORT_ERROR)
      .refine((text) => portsBetween(text) !== undefined, PORT_ERROR),
  ],
  PORT_ERROR,
)

const ranges = z.array(cidr).min(1).max(RANGES_MAX)

/** What every node's kernel does with packets, before any program of the node sees them. */
export const KernelRuleSchema = document(
  'KernelRule',
  z
    .strictObject({
      /** ingress: packets that arrive; egress: packets that leave. */
      direction: z.enum(['ingress', 'egress']),
      /** icmp is that of IPv4 and of IPv6. */
      protocol: z.enum(['tcp', 'udp', 'icmp', 'any']).default('any'),
      /** Absent: all. */
      sources: ranges.optional(),
      destinations: ranges.optional(),
      /** Of the destination. Absent: all. */
      ports: z.array(ports).min(1).max(PORTS_MAX).optional(),
      /** allow: no later rule is looked at, and no block at ingress; alert: raise one, and look at the later rules. */
      action: z.enum(['drop', 'allow', 'alert', 'rate-limit']),
      /** For rate-limit: of each address, the source at ingress and the destination at egress. */
      rate: z
        .strictObject({
          packetsPerSecond: z.int().min(1).max(PACKETS_MAX),
          /** So many may come at once; absent: those of one second. */
          burst: z.int().min(1).max(PACKETS_MAX).optional(),
        })
        .optional(),
      /** audit: count what would be dropped, and look at the later rules. */
      mode: z.enum(['enforce', 'audit']).default('enforce'),
      /** From being applied on; absent: until it is deleted. */
      ttl: duration.optional(),
      /** Rules with a lower number are looked at first; among equals by name. */
      priority: z.int().min(0).max(PRIORITY_MAX).default(1000),
    })
    .superRefine((spec, context) => {
      const fault = (path: string, message: string) => context.addIssue({ code: 'custom', path: [path], message })
      const { action, mode, ports, protocol, rate, sources, destinations } = spec
      if ((action === 'rate-limit') !== (rate !== undefined)) fault('rate', 'is for rate-limit, and it needs one')
      if (ports !== undefined && protocol !== 'tcp' && protocol !== 'udp')
        fault('ports', 'are for the protocols tcp and udp; write a rule for each')
      if (mode === 'audit' && (action === 'allow' || action === 'alert'))
        fault('mode', 'audit is for drop and rate-limit: the others drop nothing')
      if (sources && destinations && !hasCommonFamily(sources, destinations))
        fault('destinations', 'are of another IP version than sources, so no packet has both')
    }),
)

export type KernelRule = z.infer<typeof KernelRuleSchema>

/** First and last port of what a rule says of ports. Undefined if it is neither a port nor a range of them. */
export function portsBetween(written: number | string): readonly [first: number, last: number] | undefined {
  if (typeof written === 'number') return [written, written]
  const match = /^([1-9]\d{0,4})-([1-9]\d{0,4})$/.exec(written)
  if (!match) return undefined
  const [first, last] = [Number(match[1]), Number(match[2])]
  return first < last && last <= 65_535 ? [first, last] : undefined
}

function hasCommonFamily(sources: readonly string[], destinations: readonly string[]): boolean {
  const others = destinations.map(familyOf)
  return sources.some((text) => others.includes(familyOf(text)))
}

function familyOf(text: string): 4 | 6 | undefined {
  const range = parseRange(text)
  return range && (formatRange(range).includes(':') ? 6 : 4)
}
