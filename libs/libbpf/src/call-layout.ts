import { copyAddress } from './layout.ts'

/** The bytes that bpf/include/call-layout.h lays out, for user space; as in layout.ts. */

export const PAYLOAD_BYTES_MAX = 16_384
const PORT_MAX = 65_535
const PICOSECONDS_PER_SECOND = 1e12
const COOKIE_SLOT_MAX = 0xffff

export const CALL_CONFIG = {
  bytes: 40,
  enabled: 0,
  payloadBytesMax: 4,
  picosecondsPerByte: 8,
  burstNs: 16,
  sampleOneIn: 24,
  ownPid: 28,
  pidnsInum: 32,
} as const
export const CLEAR_PORTS = { bytes: 8192, words: 0 } as const
export const CALL_CHUNK = {
  bytes: 104,
  connection: 0,
  atNs: 8,
  cgroupId: 16,
  skipped: 24,
  total: 32,
  captured: 36,
  pid: 40,
  localPort: 44,
  peerPort: 46,
  local: 48,
  peer: 64,
  comm: 80,
  direction: 96,
  binding: 97,
  side: 98,
  source: 99,
  flags: 100,
} as const

export const CALL_DIRECTION = { sent: 0, received: 1 } as const
export const CALL_BINDING = { none: 0, token: 1, certain: 2 } as const
export const CALL_SIDE = { unknown: 0, server: 1, client: 2 } as const
export const CALL_SOURCE = { clear: 0, openssl: 1, node: 2, boringssl: 3, gnutls: 4, go: 5 } as const
export const PROBE_KIND = {
  ...{ read: 1, readEx: 2, write: 3, writeEx: 4, setFd: 5, handshake: 6, free: 7 },
  ...{ goWrite: 8, goCopy: 9, goReader: 10, goClose: 11 },
} as const
const CHUNK_FLAG = { closed: 1, addressed: 2 } as const

/** Index of each counter of calls.bpf.c. */
export const CALL_COUNTER = {
  chunks: 0,
  bytes: 1,
  truncated: 2,
  ringFull: 3,
  budget: 4,
  unreadable: 5,
  unsampled: 6,
  connections: 7,
  tableFull: 8,
  boundCertain: 9,
  boundToken: 10,
  boundNone: 11,
  rebound: 12,
} as const

export type CallCounterName = keyof typeof CALL_COUNTER
export type CallDirection = keyof typeof CALL_DIRECTION
/** How a connection was tied to its socket: `certain`, `token` (the thread read this socket just before it decrypted), or not. */
export type CallBinding = keyof typeof CALL_BINDING
export type CallSource = keyof typeof CALL_SOURCE
/** In crypto/tls of Go. */
export type GoProbeKind = Extract<keyof typeof PROBE_KIND, `go${string}`>
/** In TLS libraries of C. */
export type ProbeKind = Exclude<keyof typeof PROBE_KIND, GoProbeKind>

/** What the programs obey; the one element of the map `call_config`. */
export interface CallConfig {
  readonly enabled: boolean
  /** Payload of one read or write; at most 16,384. */
  readonly payloadBytesMax: number
  /** Payload of all connections of one cgroup together; 0: no bound. */
  readonly cgroupBytesPerSecond: number
  /** How much of it at once. */
  readonly cgroupBurstBytes: number
  /** Each so many-th connection is captured, whole. */
  readonly sampleOneIn: number
  /** A process that is never captured, such as the reader itself; 0: none. */
  readonly ownPid: number
  /** Of the PID namespace in whose numbers processes are told, as pidNamespaceInum() says; 0: the first. */
  readonly pidnsInum: number
}

/** What one read or write of a connection carried, or that the connection ended. */
export interface Chunk {
  /** The same for as long as the connection lives, and for no other until the programs are loaded anew. */
  readonly connection: bigint
  /** From where this process stands. */
  readonly direction: CallDirection
  /** CLOCK_BOOTTIME. */
  readonly atNs: bigint
  /** The first bytes of it. Lent: memory of the kernel, which must not be written to nor kept. */
  readonly bytes: Uint8Array
  /** Bytes of this direction, between the end of its last chunk and this one, that no chunk holds. */
  readonly skipped: number
  /** How many bytes it carried. What is more than `bytes.length` is held by no chunk. */
  readonly total: number
  /** The connection ended; there are no bytes, and no more chunks of it. What its end lacks is not told. */
  readonly closed: boolean
  readonly owner: { readonly pid: number; readonly comm: string; readonly cgroupId: bigint }
  readonly addresses: ChunkAddresses | undefined
  readonly binding: CallBinding
  /** Which end this process is; undefined where the connection is older than the programs. */
  readonly side: 'server' | 'client' | undefined
  readonly source: CallSource
}

export interface ChunkAddresses {
  /** 16 bytes, IPv4 as ::ffff:a.b.c.d. */
  readonly local: Uint8Array
  readonly localPort: number
  readonly peer: Uint8Array
  readonly peerPort: number
}

const DIRECTIONS = namesOf(CALL_DIRECTION)
const BINDINGS = namesOf(CALL_BINDING)
const SOURCES = namesOf(CALL_SOURCE)
const SIDES = [undefined, 'server', 'client'] as const

/** Value of the map `call_config`. Throws RangeError for what the programs could not obey. */
export function encodeCallConfig(config: CallConfig): Buffer {
  const { payloadBytesMax, cgroupBytesPerSecond, cgroupBurstBytes } = config
  if (payloadBytesMax < 1 || payloadBytesMax > PAYLOAD_BYTES_MAX)
    throw new RangeError(`payload of 1 to ${PAYLOAD_BYTES_MAX} bytes, not ${payloadBytesMax}`)
  const perByte =
    cgroupBytesPerSecond === 0 ? 0 : Math.max(1, Math.round(PICOSECONDS_PER_SECOND / cgroupBytesPerSecond))
  const value = Buffer.alloc(CALL_CONFIG.bytes)
  value.writeUInt32LE(config.enabled ? 1 : 0, CALL_CONFIG.enabled)
  value.writeUInt32LE(payloadBytesMax, CALL_CONFIG.payloadBytesMax)
  value.writeBigUInt64LE(BigInt(perByte), CALL_CONFIG.picosecondsPerByte)
  value.writeBigUInt64LE(BigInt(Math.round((cgroupBurstBytes * perByte) / 1000)), CALL_CONFIG.burstNs)
  value.writeUInt32LE(config.sampleOneIn, CALL_CONFIG.sampleOneIn)
  value.writeUInt32LE(config.ownPid, CALL_CONFIG.ownPid)
  value.writeUInt32LE(config.pidnsInum, CALL_CONFIG.pidnsInum)
  return value
}

/** Value of the map `clear_ports`. Throws RangeError for what is no port. */
export function encodeClearPorts(ports: readonly number[]): Buffer {
  const value = Buffer.alloc(CLEAR_PORTS.bytes)
  for (const port of ports) {
    if (!Number.isInteger(port) || port < 1 || port > PORT_MAX) throw new RangeError(`${port} is not a port`)
    value.writeUInt8(value.readUInt8(port >> 3) | (1 << (port & 7)), port >> 3)
  }
  return value
}

/** Cookie of a probe: what the function is, and whose. */
export function probeCookie(kind: ProbeKind | GoProbeKind, source: CallSource): bigint {
  return BigInt(PROBE_KIND[kind] | (CALL_SOURCE[source] << 8))
}

/** Cookie of a probe of Go. Throws RangeError for what it has no room for. */
export function goProbeCookie(
  kind: GoProbeKind,
  { slot, toTcpRead }: { readonly slot: number; readonly toTcpRead: number },
): bigint {
  if (slot < 0 || slot > COOKIE_SLOT_MAX) throw new RangeError(`a function that takes ${slot} bytes of the stack`)
  return probeCookie(kind, 'go') | (BigInt(slot) << 16n) | (BigInt.asUintN(32, BigInt(toTcpRead)) << 32n)
}

/** A record of the ring `calls`, in place: only its addresses are copied. */
export function decodeChunk(data: Buffer, at: number): Chunk {
  const flags = data.readUInt32LE(at + CALL_CHUNK.flags)
  const bytesAt = at + CALL_CHUNK.bytes
  return {
    connection: data.readBigUInt64LE(at + CALL_CHUNK.connection),
    direction: DIRECTIONS[data.readUInt8(at + CALL_CHUNK.direction)] ?? 'sent',
    atNs: data.readBigUInt64LE(at + CALL_CHUNK.atNs),
    bytes: data.subarray(bytesAt, bytesAt + data.readUInt32LE(at + CALL_CHUNK.captured)),
    skipped: Number(data.readBigUInt64LE(at + CALL_CHUNK.skipped)),
    total: data.readUInt32LE(at + CALL_CHUNK.total),
    closed: (flags & CHUNK_FLAG.closed) !== 0,
    owner: {
      pid: data.readUInt32LE(at + CALL_CHUNK.pid),
      comm: textOf(data, at + CALL_CHUNK.comm, CALL_CHUNK.direction - CALL_CHUNK.comm),
      cgroupId: data.readBigUInt64LE(at + CALL_CHUNK.cgroupId),
    },
    addresses: flags & CHUNK_FLAG.addressed ? addressesOf(data, at) : undefined,
    binding: BINDINGS[data.readUInt8(at + CALL_CHUNK.binding)] ?? 'none',
    side: SIDES[data.readUInt8(at + CALL_CHUNK.side)],
    source: SOURCES[data.readUInt8(at + CALL_CHUNK.source)] ?? 'clear',
  }
}

function addressesOf(data: Buffer, at: number): ChunkAddresses {
  return {
    local: copyAddress(data, at + CALL_CHUNK.local),
    localPort: data.readUInt16LE(at + CALL_CHUNK.localPort),
    peer: copyAddress(data, at + CALL_CHUNK.peer),
    peerPort: data.readUInt16LE(at + CALL_CHUNK.peerPort),
  }
}

function textOf(data: Buffer, at: number, length: number): string {
  const bytes = data.subarray(at, at + length)
  const end = bytes.indexOf(0)
  return bytes.toString('utf8', 0, end < 0 ? length : end)
}

function namesOf<Name extends string>(numbers: Readonly<Record<Name, number>>): Name[] {
  return (Object.keys(numbers) as Name[]).sort((a, b) => numbers[a] - numbers[b])
}
