/**
 * The bytes that bpf/include/layout.h lays out, for user space. A test compares every offset and number below with the BTF
 * of the compiled object. Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d; times are nanoseconds of CLOCK_BOOTTIME.
 */

/** Pinned maps of another version are never adopted: it is part of the pin directory. */
export const LAYOUT_VERSION = 4
export const MANAGEMENT_PORTS_MAX = 16

export const CONFIG = {
  bytes: 112,
  layoutVersion: 0,
  mode: 4,
  netnsInum: 8,
  dropAnomalies: 12,
  managementPorts: 16,
  synSource: 48,
  synPort: 64,
  events: 80,
  synMode: 96,
  unknownTransport: 100,
  pidnsInum: 104,
} as const
export const RATE = { bytes: 16, intervalNs: 0, toleranceNs: 8 } as const
/** The only value of `guarded_filter`: 512 bits. */
export const GUARDED_FILTER = { bytes: 64, bits: 0 } as const
export const BLOCK = {
  bytes: 24,
  expiresNs: 0,
  hits: 8,
  ruleId: 16,
  mode: 20,
  prefixLength: 21,
  packetsPerSecond: 22,
} as const
/** In hits: the first packet that the block dropped was told. */
export const HITS_TOLD = 1n << 63n
/** Two of them are a value of `block_exact`. */
export const BLOCK_SLOT = { bytes: 32, address: 0, head: 4, terms: 8, ruleId: 16, hits: 24 } as const
/** Bits of a slot's head and of its terms, and the constants that come with it; see struct block_slot and struct block_hash. */
export const SLOT = {
  live: 1,
  overflow: 2,
  wide: 4,
  reachShift: 3,
  reachMask: 0x7f,
  versionShift: 10,
  /** In buckets of two slots. */
  reachMax: 32,
  expiryShift: 20n,
  rateShift: 8n,
  timeShift: 24n,
  /** Bytes from the beginning of a bucket to the address of the wide block in it. */
  wideAddress: 40,
  hashMix: 0x846ca68b,
} as const
/** The only value of `block_hash`. */
export const BLOCK_HASH = { bytes: 48, factors: 0, addend: 32, homes: 40 } as const
export const CIDR4_KEY = { bytes: 8, prefixLength: 0, address: 4 } as const
/** Value of `block_lengths4`: bit 32 - length for each prefix length to look for. */
export const BLOCK_LENGTHS4 = { bytes: 8 } as const
export const CIDR6_KEY = { bytes: 20, prefixLength: 0, address: 4 } as const
export const FIRST_HIT = { bytes: 32, atNs: 0, source: 8, ruleId: 24, prefixLength: 28 } as const
export const RULE_SET = { bytes: 16, generation: 0, ingressRules: 4, egressRules: 8 } as const
export const RULE_MATCH_KEY = {
  bytes: 24,
  prefixLength: 0,
  generation: 4,
  direction: 5,
  dimension: 6,
  family: 7,
  value: 8,
} as const
export const RULE_BITS = { bytes: 136, summary: 0, words: 8 } as const
export const RULE = { bytes: 32, expiresNs: 0, rate: 8, id: 24, action: 28, mode: 29 } as const
export const RULE_COUNT = { bytes: 24, matched: 0, over: 8, lastNs: 16 } as const
export const BUCKET_KEY = { bytes: 24, address: 0, id: 16, kind: 20 } as const
export const FRAGMENT_KEY = { bytes: 40, source: 0, destination: 16, id: 32, protocol: 36, direction: 37 } as const
export const FRAGMENT = {
  bytes: 16,
  expiresNs: 0,
  sourcePort: 8,
  destinationPort: 10,
  protocol: 12,
  hasPorts: 13,
} as const
export const GUARD_EVENT = {
  bytes: 64,
  atNs: 0,
  source: 8,
  destination: 24,
  sourcePort: 40,
  destinationPort: 42,
  protocol: 44,
  direction: 45,
  origin: 46,
  verdict: 47,
  ifindex: 48,
  id: 52,
  ipBytes: 56,
  prefixLength: 60,
} as const

/** Rules of each direction that a set holds. */
export const RULES_MAX = 1024
/** Ids of rules are below this; see Rule. */
export const RULE_IDS = 4096

export const GUARD_MODE = { off: 0, audit: 1, enforce: 2 } as const
export const BLOCK_MODE = { drop: 0, audit: 1, rateLimit: 2 } as const
export const ANOMALY = {
  malformed: 1,
  vlanTooDeep: 2,
  truncatedTransport: 4,
  tooManyExtensionHeaders: 8,
  lengthBeyondFrame: 16,
  tinyFragment: 32,
  badTcp: 64,
} as const
export const UNKNOWN_TRANSPORT = { judged: 0, passed: 1 } as const
export const RULE_DIMENSION = { source: 0, destination: 1, transport: 2, unknownTransport: 3 } as const
export const RULE_ACTION = { drop: 0, allow: 1, alert: 2, 'rate-limit': 3 } as const
export const RULE_MODE = { enforce: 0, audit: 1 } as const
export const EVENT_ORIGIN = { block: 0, rule: 1, policy: 2 } as const

/** Index of each counter; the first sixteen are for verdicts, and each arriving packet counts under exactly one of them. */
export const COUNTER = {
  passed: 0,
  off: 1,
  guardedAddress: 2,
  managementPort: 3,
  droppedExact: 4,
  droppedCidr: 5,
  audited: 6,
  notIp: 7,
  malformed: 8,
  vlanTooDeep: 9,
  allowed: 10,
  droppedRule: 11,
  droppedRate: 12,
  droppedSyn: 13,
  droppedAnomaly: 14,
  expiredSeen: 16,
  tooManyExtensionHeaders: 17,
  truncatedTransport: 18,
  nonFirstFragment: 19,
  lengthBeyondFrame: 20,
  cidrChainTooLong: 21,
  firstHitLost: 22,
  guardEventLost: 23,
  flowMapFull: 24,
  flowMapBusy: 25,
  flowSpillLost: 26,
  egressUnparsed: 27,
  tinyFragment: 28,
  fragmentWithoutFirst: 29,
  badTcp: 30,
  unknownTransport: 31,
  ruleAlerted: 32,
  ruleChainTooLong: 33,
  rateContended: 34,
  egressPassed: 36,
  egressExempt: 37,
  egressAllowed: 38,
  egressAudited: 39,
  egressDroppedRule: 40,
  egressDroppedRate: 41,
  socketNotRemembered: 48,
  kernelDropNotDetailed: 49,
  droppedBeyondFlows: 50,
} as const

export type GuardMode = keyof typeof GUARD_MODE
export type BlockMode = keyof typeof BLOCK_MODE
export type CounterName = keyof typeof COUNTER
/** What may be wrong with a packet; see bpf/include/layout.h. */
export type Anomaly = keyof typeof ANOMALY
export type RuleAction = keyof typeof RULE_ACTION
export type RuleMode = keyof typeof RULE_MODE
export type Direction = 'ingress' | 'egress'

/** So many packets a second, and so many at once. */
export interface Rate {
  readonly packetsPerSecond: number
  readonly burst: number
}

/** What the guard obeys; the one element of the map `config`. */
export interface GuardConfig {
  readonly mode: GuardMode
  /** TCP and UDP ports of this node that pass whatever is blocked; at most 16, each 1 to 65535. */
  readonly managementPorts: readonly number[]
  /** Inode of the network namespace whose handshakes count, as `stat -L /proc/self/ns/net` says; 0: any. */
  readonly netnsInum: number
  /** Of the PID namespace in whose numbers processes are told, as pidNamespaceInum() says. Absent: the first. */
  readonly pidnsInum?: number
  /** Packets with one of these are dropped while the mode is `enforce`; the others are only counted. Absent: none. */
  readonly dropAnomalies?: readonly Anomaly[]
  /** SYNs without ACK that each source may send; of IPv6, each /64. Absent: any number. */
  readonly synsOfSource?: Rate
  /** SYNs without ACK that each port of this node may receive, from whomever. Absent: any number. */
  readonly synsToPort?: Rate
  /** Whether SYNs beyond are dropped or only counted; default `drop`. */
  readonly synMode?: 'drop' | 'audit'
  /**
   * Whether a packet whose ports nobody knows is `judged` (the default) as if it had the port of any rule that drops or
   * limits, or `passed` by all rules with ports.
   */
  readonly unknownTransport?: keyof typeof UNKNOWN_TRANSPORT
  /** Records in the ring `guard_events` of each rule, block or reason, on each CPU. Absent: none. */
  readonly events?: Rate
}

/** One entry of a block map. */
export interface Block {
  /** 0n: never. */
  readonly expiresNs: bigint
  readonly ruleId: number
  readonly mode: BlockMode
  /** Packets that matched while the entry was live. */
  readonly hits: bigint
  /** Of each source, for the mode `rateLimit`: 1 to 65535. */
  readonly packetsPerSecond?: number
}

/** Where the block of a range lives. */
export interface BlockTarget {
  readonly map: 'block_exact' | 'block_cidr4' | 'block_cidr6'
  readonly key: Buffer
  /** As the kernel's entry holds it: 0 to 32 for block_cidr4, else 0 to 128. */
  readonly prefixLength: number
}

/** The first packet that an entry dropped. */
export interface FirstHit {
  readonly atNs: bigint
  readonly source: Uint8Array
  readonly ruleId: number
  /** 128: the exact entry; else that of the CIDR entry, 0 to 32 for IPv4. */
  readonly prefixLength: number
}

/** A rule of a set: what to do with packets that match it. What they are is in `rule_match`. */
export interface Rule {
  /** 0n: never. */
  readonly expiresNs: bigint
  /** Its place in `rule_counts`, and its name in events; kept by a rule for as long as it lives. */
  readonly id: number
  readonly action: RuleAction
  readonly mode: RuleMode
  /** For rate-limit. */
  readonly rate?: Rate
}

/** Packets that a rule met, since its id was given out. */
export interface RuleCount {
  readonly matched: bigint
  /** Dropped, or in audit mode would have been. */
  readonly over: bigint
  /** 0n: never. */
  readonly lastNs: bigint
}

/** A sample of what the guard dropped, audited, or was to raise an alert of. */
export interface GuardEvent {
  readonly atNs: bigint
  readonly source: Uint8Array
  readonly destination: Uint8Array
  /** 0 where the packet shows none; of a later fragment those of the first. */
  readonly sourcePort: number
  readonly destinationPort: number
  readonly protocol: number
  readonly direction: Direction
  readonly origin: keyof typeof EVENT_ORIGIN
  /** The counter that it counted under. */
  readonly verdict: CounterName
  readonly ifindex: number
  /** `ruleId` of the block, id of the rule, or of a policy the anomalies as bits. */
  readonly id: number
  readonly ipBytes: number
  /** Of the block, as in FirstHit. */
  readonly prefixLength: number
}

const NANOSECONDS = 1_000_000_000
const PACKETS_PER_SECOND_MAX = 65_535
const MAPPED_PREFIX = Buffer.from('00000000000000000000ffff', 'hex')
const MAPPED_BITS = 96
const ADDRESS_BITS = 128

/** Value of the map `config`. Throws RangeError for a port that is none or for too many. */
export function encodeConfig(config: GuardConfig): Buffer {
  const { mode, managementPorts, netnsInum, dropAnomalies = [], synMode = 'drop', unknownTransport = 'judged' } = config
  if (managementPorts.length > MANAGEMENT_PORTS_MAX)
    throw new RangeError(`at most ${MANAGEMENT_PORTS_MAX} management ports, not ${managementPorts.length}`)
  const value = Buffer.alloc(CONFIG.bytes)
  value.writeUInt32LE(LAYOUT_VERSION, CONFIG.layoutVersion)
  value.writeUInt32LE(GUARD_MODE[mode], CONFIG.mode)
  value.writeUInt32LE(netnsInum, CONFIG.netnsInum)
  value.writeUInt32LE(config.pidnsInum ?? 0, CONFIG.pidnsInum)
  for (const [index, port] of managementPorts.entries()) {
    if (port === 0) throw new RangeError('0 is not a port')
    value.writeUInt16LE(port, CONFIG.managementPorts + 2 * index)
  }
  value.writeUInt32LE(
    dropAnomalies.reduce((bits, name) => bits | ANOMALY[name], 0),
    CONFIG.dropAnomalies,
  )
  writeRate(value, CONFIG.synSource, config.synsOfSource)
  writeRate(value, CONFIG.synPort, config.synsToPort)
  writeRate(value, CONFIG.events, config.events)
  value.writeUInt32LE(BLOCK_MODE[synMode], CONFIG.synMode)
  value.writeUInt32LE(UNKNOWN_TRANSPORT[unknownTransport], CONFIG.unknownTransport)
  return value
}

/** A rate as the kernel's buckets take it; none is no limit. Throws RangeError for one that no bucket can hold. */
function writeRate(to: Buffer, at: number, rate: Rate | undefined): void {
  if (!rate) return
  const { packetsPerSecond, burst } = rate
  if (!(packetsPerSecond > 0 && packetsPerSecond <= NANOSECONDS && Number.isSafeInteger(burst) && burst >= 1))
    throw new RangeError(`a rate of ${packetsPerSecond} packets a second and a burst of ${burst} is none`)
  const intervalNs = Math.round(NANOSECONDS / packetsPerSecond)
  to.writeBigUInt64LE(BigInt(intervalNs), at + RATE.intervalNs)
  to.writeBigUInt64LE(BigInt(intervalNs) * BigInt(burst - 1), at + RATE.toleranceNs)
}

/** Map and key of a range in the 128-bit form (an IPv4 /24 has the prefix length 120). Host bits must be zero. */
export function blockTarget({ address, prefixLength }: { address: Uint8Array; prefixLength: number }): BlockTarget {
  if (address.length !== 16 || !Number.isInteger(prefixLength) || prefixLength < 0 || prefixLength > ADDRESS_BITS)
    throw new RangeError('a range is 16 bytes of address and a prefix length of 0 to 128')
  if (prefixLength === ADDRESS_BITS) return { map: 'block_exact', key: Buffer.from(address), prefixLength }
  const isV4 = prefixLength >= MAPPED_BITS && MAPPED_PREFIX.equals(address.subarray(0, 12))
  const key = Buffer.alloc(isV4 ? CIDR4_KEY.bytes : CIDR6_KEY.bytes)
  const kernelLength = isV4 ? prefixLength - MAPPED_BITS : prefixLength
  key.writeUInt32LE(kernelLength, CIDR4_KEY.prefixLength)
  key.set(isV4 ? address.subarray(12) : address, CIDR4_KEY.address)
  return { map: isV4 ? 'block_cidr4' : 'block_cidr6', key, prefixLength: kernelLength }
}

/**
 * Value for a block map. `previous` is what the map held for the key: its hits go on, so that extending a block is not a
 * new block.
 */
export function encodeBlock(
  target: BlockTarget,
  { expiresNs, ruleId, mode, packetsPerSecond = 0 }: Pick<Block, 'expiresNs' | 'ruleId' | 'mode' | 'packetsPerSecond'>,
  previous?: Uint8Array,
): Buffer {
  const isRate = packetsPerSecond >= 1 && packetsPerSecond <= PACKETS_PER_SECOND_MAX
  if (mode === 'rateLimit' && !isRate)
    throw new RangeError(`a block cannot let ${packetsPerSecond} packets a second pass`)
  const value = previous ? Buffer.from(previous) : Buffer.alloc(BLOCK.bytes)
  value.writeBigUInt64LE(expiresNs, BLOCK.expiresNs)
  value.writeUInt32LE(ruleId, BLOCK.ruleId)
  value.writeUInt8(BLOCK_MODE[mode], BLOCK.mode)
  value.writeUInt8(target.prefixLength, BLOCK.prefixLength)
  value.writeUInt16LE(mode === 'rateLimit' ? packetsPerSecond : 0, BLOCK.packetsPerSecond)
  return value
}

/** Whether what a look-up gave is the entry of that very range: in a trie it may be that of a wider one. */
export function isBlockOf({ prefixLength }: BlockTarget, value: Buffer): boolean {
  return value.readUInt8(BLOCK.prefixLength) === prefixLength
}

/** Of an entry of a block map what says whether it is as wanted; for many. `at`: offset in bytes. */
export function decodeBlockHead(values: Buffer, at: number): Pick<Block, 'expiresNs' | 'ruleId'> & { isDrop: boolean } {
  return {
    expiresNs: values.readBigUInt64LE(at + BLOCK.expiresNs),
    ruleId: values.readUInt32LE(at + BLOCK.ruleId),
    isDrop: values.readUInt8(at + BLOCK.mode) === BLOCK_MODE.drop,
  }
}

/** What a block map holds. */
export function decodeBlock(value: Buffer): Block {
  const packetsPerSecond = value.readUInt16LE(BLOCK.packetsPerSecond)
  return {
    expiresNs: value.readBigUInt64LE(BLOCK.expiresNs),
    ruleId: value.readUInt32LE(BLOCK.ruleId),
    mode: nameOf(BLOCK_MODE, value.readUInt8(BLOCK.mode)),
    hits: value.readBigUInt64LE(BLOCK.hits) & ~HITS_TOLD,
    ...(packetsPerSecond > 0 && { packetsPerSecond }),
  }
}

/** A record of the ring `first_hits`. */
export function decodeFirstHit(data: Buffer, at: number): FirstHit {
  return {
    atNs: data.readBigUInt64LE(at + FIRST_HIT.atNs),
    source: copyAddress(data, at + FIRST_HIT.source),
    ruleId: data.readUInt32LE(at + FIRST_HIT.ruleId),
    prefixLength: data.readUInt32LE(at + FIRST_HIT.prefixLength),
  }
}

/** A record of the ring `guard_events`. */
export function decodeGuardEvent(data: Buffer, at: number): GuardEvent {
  return {
    atNs: data.readBigUInt64LE(at + GUARD_EVENT.atNs),
    source: copyAddress(data, at + GUARD_EVENT.source),
    destination: copyAddress(data, at + GUARD_EVENT.destination),
    sourcePort: data.readUInt16LE(at + GUARD_EVENT.sourcePort),
    destinationPort: data.readUInt16LE(at + GUARD_EVENT.destinationPort),
    protocol: data.readUInt8(at + GUARD_EVENT.protocol),
    direction: data.readUInt8(at + GUARD_EVENT.direction) === 0 ? 'ingress' : 'egress',
    origin: nameOf(EVENT_ORIGIN, data.readUInt8(at + GUARD_EVENT.origin)),
    verdict: nameOf(COUNTER, data.readUInt8(at + GUARD_EVENT.verdict)),
    ifindex: data.readUInt32LE(at + GUARD_EVENT.ifindex),
    id: data.readUInt32LE(at + GUARD_EVENT.id),
    ipBytes: data.readUInt32LE(at + GUARD_EVENT.ipBytes),
    prefixLength: data.readUInt32LE(at + GUARD_EVENT.prefixLength),
  }
}

/** Value of the map `rules`. */
export function encodeRule({ expiresNs, id, action, mode, rate }: Rule): Buffer {
  const value = Buffer.alloc(RULE.bytes)
  value.writeBigUInt64LE(expiresNs, RULE.expiresNs)
  writeRate(value, RULE.rate, rate)
  value.writeUInt32LE(id, RULE.id)
  value.writeUInt8(RULE_ACTION[action], RULE.action)
  value.writeUInt8(RULE_MODE[mode], RULE.mode)
  return value
}

/** The sum over all CPUs of what `rule_counts` holds for a rule; `value` is of all CPUs together. */
export function decodeRuleCount(value: Buffer): RuleCount {
  const sum = { matched: 0n, over: 0n, lastNs: 0n }
  for (let at = 0; at < value.length; at += RULE_COUNT.bytes) {
    sum.matched += value.readBigUInt64LE(at + RULE_COUNT.matched)
    sum.over += value.readBigUInt64LE(at + RULE_COUNT.over)
    const lastNs = value.readBigUInt64LE(at + RULE_COUNT.lastNs)
    if (lastNs > sum.lastNs) sum.lastNs = lastNs
  }
  return sum
}

function nameOf<Name extends string>(numbers: Readonly<Record<Name, number>>, number: number): Name {
  for (const name in numbers) if (numbers[name] === number) return name
  throw new RangeError(`${number} is not one of ${Object.keys(numbers).join(', ')}`)
}

/** The 16 bytes of an address, copied. */
export function copyAddress(from: Buffer, at: number): Uint8Array {
  return new Uint8Array(from.subarray(at, at + 16))
}
