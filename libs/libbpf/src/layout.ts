/**
 * The bytes that bpf/include/layout.h lays out, for user space. A test compares every offset and number below with the BTF
 * of the compiled object. Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d; times are nanoseconds of CLOCK_BOOTTIME.
 */

/** Pinned maps of another version are never adopted: it is part of the pin directory. */
export const LAYOUT_VERSION = 2
export const MANAGEMENT_PORTS_MAX = 16

export const CONFIG = { bytes: 48, layoutVersion: 0, mode: 4, netnsInum: 8, managementPorts: 16 } as const
export const BLOCK = {
  bytes: 40,
  expiresNs: 0,
  hits: 8,
  firstHitNs: 16,
  lastHitNs: 24,
  ruleId: 32,
  mode: 36,
  prefixLength: 37,
} as const
export const CIDR4_KEY = { bytes: 8, prefixLength: 0, address: 4 } as const
export const CIDR6_KEY = { bytes: 20, prefixLength: 0, address: 4 } as const
export const FIRST_HIT = { bytes: 32, atNs: 0, source: 8, ruleId: 24, prefixLength: 28 } as const

export const GUARD_MODE = { off: 0, audit: 1, enforce: 2 } as const
export const BLOCK_MODE = { drop: 0, audit: 1 } as const

/** Index of each counter; the first ten are verdicts, and each packet counts under exactly one of them. */
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
  expiredSeen: 16,
  tooManyExtensionHeaders: 17,
  truncatedTransport: 18,
  nonFirstFragment: 19,
  lengthBeyondFrame: 20,
  cidrChainTooLong: 21,
  firstHitLost: 22,
  flowMapFull: 24,
  flowMapBusy: 25,
  flowSpillLost: 26,
  egressUnparsed: 27,
} as const

export type GuardMode = keyof typeof GUARD_MODE
export type BlockMode = keyof typeof BLOCK_MODE
export type CounterName = keyof typeof COUNTER

/** What the guard obeys; the one element of the map `config`. */
export interface GuardConfig {
  readonly mode: GuardMode
  /** TCP and UDP ports of this node that pass whatever is blocked; at most 16, each 1 to 65535. */
  readonly managementPorts: readonly number[]
  /** Inode of the network namespace whose handshakes count, as `stat -L /proc/self/ns/net` says; 0: any. */
  readonly netnsInum: number
}

/** One entry of a block map. */
export interface Block {
  /** 0n: never. */
  readonly expiresNs: bigint
  readonly ruleId: number
  readonly mode: BlockMode
  /** Packets that matched while the entry was live. */
  readonly hits: bigint
  /** When the entry dropped its first packet; 0n: not yet. */
  readonly firstHitNs: bigint
  readonly lastHitNs: bigint
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

const MAPPED_PREFIX = Buffer.from('00000000000000000000ffff', 'hex')
const MAPPED_BITS = 96
const ADDRESS_BITS = 128

/** Value of the map `config`. Throws RangeError for a port that is none or for too many. */
export function encodeConfig({ mode, managementPorts, netnsInum }: GuardConfig): Buffer {
  if (managementPorts.length > MANAGEMENT_PORTS_MAX)
    throw new RangeError(`at most ${MANAGEMENT_PORTS_MAX} management ports, not ${managementPorts.length}`)
  const value = Buffer.alloc(CONFIG.bytes)
  value.writeUInt32LE(LAYOUT_VERSION, CONFIG.layoutVersion)
  value.writeUInt32LE(GUARD_MODE[mode], CONFIG.mode)
  value.writeUInt32LE(netnsInum, CONFIG.netnsInum)
  for (const [index, port] of managementPorts.entries()) {
    if (port === 0) throw new RangeError('0 is not a port')
    value.writeUInt16LE(port, CONFIG.managementPorts + 2 * index)
  }
  return value
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
  { expiresNs, ruleId, mode }: Pick<Block, 'expiresNs' | 'ruleId' | 'mode'>,
  previous?: Uint8Array,
): Buffer {
  const value = previous ? Buffer.from(previous) : Buffer.alloc(BLOCK.bytes)
  value.writeBigUInt64LE(expiresNs, BLOCK.expiresNs)
  value.writeUInt32LE(ruleId, BLOCK.ruleId)
  value.writeUInt8(BLOCK_MODE[mode], BLOCK.mode)
  value.writeUInt8(target.prefixLength, BLOCK.prefixLength)
  return value
}

/** What a block map holds. */
export function decodeBlock(value: Buffer): Block {
  return {
    expiresNs: value.readBigUInt64LE(BLOCK.expiresNs),
    ruleId: value.readUInt32LE(BLOCK.ruleId),
    mode: value.readUInt8(BLOCK.mode) === BLOCK_MODE.drop ? 'drop' : 'audit',
    hits: value.readBigUInt64LE(BLOCK.hits),
    firstHitNs: value.readBigUInt64LE(BLOCK.firstHitNs),
    lastHitNs: value.readBigUInt64LE(BLOCK.lastHitNs),
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

/** The 16 bytes of an address, copied. */
export function copyAddress(from: Buffer, at: number): Uint8Array {
  return new Uint8Array(from.subarray(at, at + 16))
}
