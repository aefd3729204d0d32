import { hostname } from 'node:os'
import { isAbsolute } from 'node:path'
import { parseAddress } from '@tollward/contracts'
import { MANAGEMENT_PORTS_MAX } from '@tollward/libbpf'
import { baseConfig } from '@tollward/runtime'
import { z } from 'zod'

/** As the kernel takes them: up to 15 characters, no slash and no space. */
const INTERFACE = /^[^\s/]{1,15}$/
const NODE = /^[-._A-Za-z0-9]{1,63}$/
const ENTRIES_MAX = 4_194_304

const entries = z.coerce.number<string>().int().min(1).max(ENTRIES_MAX)

const interfaces = z.string().transform((text, context) => {
  const names = list(text)
  if (names.length === 0) context.addIssue('names no interface; on a laptop "lo" will do')
  for (const name of names) if (!INTERFACE.test(name)) context.addIssue(`"${name}" cannot be an interface`)
  return [...new Set(names)]
})

const ports = z.string().transform((text, context) => {
  const numbers = list(text).map((entry) => (/^\d{1,5}$/.test(entry) ? Number(entry) : 0))
  if (numbers.some((port) => port < 1 || port > 65_535)) context.addIssue('holds something that is no port')
  if (numbers.length > MANAGEMENT_PORTS_MAX) context.addIssue(`holds more than ${MANAGEMENT_PORTS_MAX} ports`)
  return numbers
})

const addresses = z.string().transform((text, context) =>
  list(text).flatMap((entry) => {
    const address = parseAddress(entry)
    if (!address) context.addIssue(`"${entry}" is no address`)
    return address ? [address] : []
  }),
)

/** Where the kernel programs come from, and where they live on. All that the commands need. */
export const objectAndPins = {
  /** The compiled programs. Without it those of this repository, compiled when they are missing or stale. */
  bpfObject: z.string().min(1).optional(),
  /** A directory in a bpffs, which is made. */
  pinDirectory: z.string().refine(isAbsolute, 'is no absolute path').default('/sys/fs/bpf/tollward'),
} as const

export const ConfigSchema = z.strictObject({
  ...baseConfig,
  ...objectAndPins,
  /** The interfaces to guard and watch, with commas. */
  interfaces,
  /** The node's name in its flows. */
  node: z.string().regex(NODE, 'holds more than letters, digits and -._').prefault(hostname),
  /** enforce: drop; audit: only count what would be dropped; off: only watch. */
  mode: z.enum(['off', 'audit', 'enforce']).default('enforce'),
  /** TCP and UDP ports of this node that stay reachable for whomever is blocked, with commas. */
  managementPorts: ports.prefault('22,4222,9090'),
  /** Addresses that no block touches, with commas; beside 127.0.0.1, ::1 and all addresses of this node's interfaces. */
  guardedAddresses: addresses.prefault(''),
  drainIntervalMs: z.coerce.number<string>().int().min(20).max(10_000).default(150),
  /** Room in the kernel. Changing one replaces the pinned maps. */
  blockedAddressesMax: entries.default(131_072),
  blockedRangesMax: entries.default(65_536),
  flowsMax: entries.default(65_536),
})

export type Config = z.output<typeof ConfigSchema>

function list(text: string): string[] {
  return text
    .split(',')
    .map((entry) => entry.trim())
    .filter((entry) => entry !== '')
}
