import { hostname } from 'node:os'
import { isAbsolute } from 'node:path'
import { parseAddress, parseRange } from '@tollward/contracts'
import { ANOMALY, type Anomaly, MANAGEMENT_PORTS_MAX, PAYLOAD_BYTES_MAX } from '@tollward/libbpf'
import { baseConfig, port, processConfig } from '@tollward/runtime'
import { z } from 'zod'

/** As the kernel takes them: up to 15 characters, no slash and no space. */
const INTERFACE = /^[^\s/]{1,15}$/
const NODE = /^[-._A-Za-z0-9]{1,63}$/
const ENTRIES_MAX = 4_194_304
/** A node has few ports at which it speaks HTTP in the clear; each costs nothing. */
const CLEAR_PORTS_MAX = 256

const entries = z.coerce.number<string>().int().min(1).max(ENTRIES_MAX)

const interfaces = z.string().transform((text, context) => {
  const names = list(text)
  if (names.length === 0) context.addIssue('names no interface; on a laptop "lo" will do')
  for (const name of names) if (!INTERFACE.test(name)) context.addIssue(`"${name}" cannot be an interface`)
  return [...new Set(names)]
})

const ports = portsUpTo(MANAGEMENT_PORTS_MAX)
const clearPorts = portsUpTo(CLEAR_PORTS_MAX)

const addresses = z.string().transform((text, context) =>
  list(text).flatMap((entry) => {
    const address = parseAddress(entry)
    if (!address) context.addIssue(`"${entry}" is no address`)
    return address ? [address] : []
  }),
)

const ranges = z.string().transform((text, context) =>
  list(text).flatMap((entry) => {
    const range = parseRange(entry)
    if (!range) context.addIssue(`"${entry}" is no range such as 10.0.0.0/8, with the bits behind its prefix zero`)
    return range ? [range] : []
  }),
)

const path = z.string().refine(isAbsolute, 'is no absolute path')

/** `100/200`: so many packets a second, and so many at once. */
const rate = z.string().transform((text, context) => {
  const [, packetsPerSecond = '', burst = ''] = /^(\d{1,9})\/(\d{1,9})$/.exec(text) ?? []
  if (Number(packetsPerSecond) > 0 && Number(burst) > 0)
    return { packetsPerSecond: Number(packetsPerSecond), burst: Number(burst) }
  context.addIssue(`"${text}" is no rate; "100/200" is 100 packets a second, and 200 at once`)
  return z.NEVER
})

const ANOMALIES = Object.keys(ANOMALY) as Anomaly[]

const anomalies = z.string().transform((text, context) =>
  list(text).flatMap((entry) => {
    const found = ANOMALIES.find((name) => snake(name) === entry)
    if (!found) context.addIssue(`"${entry}" is none of ${ANOMALIES.map(snake).join(', ')}`)
    return found ?? []
  }),
)

/** Where the kernel programs come from, and where they live on. All that the commands need. */
export const objectAndPins = {
  /** The compiled programs. Without it those of this repository, compiled when they are missing or stale. */
  bpfObject: z.string().min(1).optional(),
  /** A directory in a bpffs, which is made. */
  pinDirectory: path.default('/sys/fs/bpf/tollward'),
} as const

/** What a sensor does, whether there is a bus or not. */
const sensorSettings = {
  ...objectAndPins,
  /** The node's name in its flows. */
  node: z.string().regex(NODE, 'holds more than letters, digits and -._').prefault(hostname),
  /** enforce: drop; audit: only count what would be dropped; off: only watch. */
  mode: z.enum(['off', 'audit', 'enforce']).default('enforce'),
  /** TCP and UDP ports of this node that stay reachable for whomever is blocked, with commas. */
  managementPorts: ports.prefault('22,4222,9090'),
  /** Addresses that no block touches, with commas; beside 127.0.0.1, ::1 and all addresses of this node's interfaces. */
  guardedAddresses: addresses.prefault(''),
  /** Kinds of malformed packets that are dropped, with commas; the others pass. All are counted. */
  dropAnomalies: anomalies.prefault(''),
  /** SYNs that one source may send (of IPv6: one /64), and that one port of this node may receive, as 100/200. Else any number. */
  synsPerSource: rate.optional(),
  synsPerPort: rate.optional(),
  /** Whether SYNs beyond are dropped, or only counted. */
  synMode: z.enum(['drop', 'audit']).default('drop'),
  /** Whether a packet that shows no ports matches rules that name some, and so cannot slip past them. */
  unknownTransport: z.enum(['judged', 'passed']).default('judged'),
  drainIntervalMs: z.coerce.number<string>().int().min(20).max(10_000).default(150),
  /** Room in the kernel. Changing one replaces the pinned maps. */
  blockedAddressesMax: entries.default(131_072),
  blockedRangesMax: entries.default(65_536),
  flowsMax: entries.default(65_536),
} as const

export const ConfigSchema = z.strictObject({
  ...baseConfig,
  ...sensorSettings,
  /** The interfaces to guard and watch, with commas. */
  interfaces,
  /** on: read API calls inside TLS and in the clear, of every process of this node. auto: where the kernel can; else it is ready without. */
  calls: z.enum(['off', 'auto', 'on']).default('off'),
  /** Only calls of connections with an end in one of these ranges are looked at, with commas. Empty: all, also those of no known connection. */
  callsRanges: ranges.prefault(''),
  /** Connections with such a port at either end are read in the clear, with commas. */
  callsClearPorts: clearPorts.prefault(''),
  /** Of each read and write: heads fit, long content does not. */
  callsPayloadBytesMax: z.coerce.number<string>().int().min(256).max(PAYLOAD_BYTES_MAX).default(4096),
  /** Of all processes of one cgroup, so that none takes the sensor from the others; 0: no bound. */
  callsCgroupBytesPerSecond: z.coerce.number<string>().int().min(0).default(16_777_216),
  /** 1: every connection; 10: each tenth, whole. */
  callsSampleOneIn: z.coerce.number<string>().int().min(1).max(1_000_000).default(1),
})

/** Of tollward-archsec: a host has no bus to publish to, and no other services to be managed by. */
export const HostConfigSchema = z.strictObject({
  ...processConfig,
  healthPort: port.default(9406),
  ...sensorSettings,
  /** Without it, those that lead anywhere by a default route when the sensor starts. */
  interfaces: interfaces.optional(),
  managementPorts: ports.prefault('22'),
  /** Nobody reads flows: they are only taken out of the kernel. */
  drainIntervalMs: z.coerce.number<string>().int().min(20).max(10_000).default(1000),
  /** auto: nftables where the kernel does not take the programs. */
  enforcer: z.enum(['auto', 'kernel', 'nftables']).default('auto'),
  /** KernelRule and BlockList documents. */
  rulesFile: path.default('/etc/tollward-archsec/rules.yaml'),
  /** A copy of the last good rules, for a start at which the file is wrong. */
  keptRulesFile: path.default('/var/lib/tollward-archsec/rules.yaml'),
  /** Where the command `status` reads how the sensor is. */
  stateFile: path.default('/run/tollward-archsec/state.json'),
})

export type Config = z.output<typeof ConfigSchema>
export type HostConfig = z.output<typeof HostConfigSchema>
export type SensorConfig = z.output<z.ZodObject<typeof sensorSettings>> & Pick<Config, 'interfaces'>

function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
}

function portsUpTo(max: number) {
  return z.string().transform((text, context) => {
    const numbers = list(text).map((entry) => (/^\d{1,5}$/.test(entry) ? Number(entry) : 0))
    if (numbers.some((port) => port < 1 || port > 65_535)) context.addIssue('holds something that is no port')
    if (numbers.length > max) context.addIssue(`holds more than ${max} ports`)
    return numbers
  })
}

function list(text: string): string[] {
  return text
    .split(',')
    .map((entry) => entry.trim())
    .filter((entry) => entry !== '')
}
