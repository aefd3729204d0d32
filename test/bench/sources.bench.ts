import process from 'node:process'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { BlockList } from '@tollward/decision/testing'
import { percentile } from './latencies.ts'

/** One line of the table. */
export type Row = Readonly<Record<string, string | number>>

export const name = 'sources: is an address among 1,000,000 blocked ones and 10,000 ranges?'

const ADDRESSES = 1_000_000
const RANGES = 10_000
const LOOKUPS = 500_000
const FOREVER_MS = Number.MAX_SAFE_INTEGER
/** Prefix lengths that occur, each as often. */
const V4_LENGTHS = [104, 108, 112, 116, 120, 122, 124]
const V6_LENGTHS = [32, 40, 48, 56, 64]

interface Family {
  readonly what: string
  readonly random: () => Uint8Array
  readonly lengths: readonly number[]
}

const FAMILIES: readonly Family[] = [
  {
    what: 'IPv4',
    lengths: V4_LENGTHS,
    random: () => fill(Uint8Array.of(...new Array(10).fill(0), 255, 255, 0, 0, 0, 0), 12),
  },
  { what: 'IPv6', lengths: V6_LENGTHS, random: () => fill(new Uint8Array(16), 0) },
]

/**
 * The list that decision points hold beside the plain way: a Map of strings for addresses, and one for each prefix length. Addresses
 * that are looked up are half blocked, half not, at random: what a look-up costs is mostly the way to the memory.
 */
export async function run(): Promise<{ rows: Row[] }> {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  const rows: Row[] = []
  for (const family of FAMILIES) {
    const addresses = Array.from({ length: ADDRESSES }, family.random)
    const ranges = Array.from({ length: RANGES }, (_, index) => ({
      address: family.random(),
      prefixLength: family.lengths[index % family.lengths.length] ?? 0,
    }))
    const asked = Array.from({ length: LOOKUPS }, (_, index) =>
      index % 2 === 0 ? family.random() : (addresses[(index * 7919) % ADDRESSES] ?? family.random()),
    )
    const held: readonly (readonly [string, () => Held])[] = [
      ['list of decision points', () => compact(addresses, ranges)],
      ['maps of strings', () => plain(addresses, ranges)],
    ]
    for (const [what, make] of held) rows.push({ blocks: family.what, held: what, ...figuresOf(make, asked, collect) })
  }
  return { rows }
}

/** A function of its own, so that nothing of it is left when the next one begins. */
function figuresOf(make: () => Held, asked: readonly Uint8Array[], collect: () => void): Row {
  collect()
  const before = memoryOf()
  const { isBlocked, figures } = make()
  collect()
  const bytes = memoryOf() - before
  return { ...measure(isBlocked, asked), ...figures, bytesPerBlock: Math.round(bytes / (ADDRESSES + RANGES)) }
}

interface Held {
  readonly isBlocked: (address: Uint8Array) => boolean
  readonly figures: Row
}

function compact(
  addresses: readonly Uint8Array[],
  ranges: readonly { address: Uint8Array; prefixLength: number }[],
): Held {
  const list = new BlockList([])
  const tookMs: number[] = []
  const set = (range: { address: Uint8Array; prefixLength: number }) => {
    const beganMs = performance.now()
    list.set({ range, expiresAtMs: FOREVER_MS })
    tookMs.push(performance.now() - beganMs)
  }
  for (const address of addresses) set({ address, prefixLength: 128 })
  for (const range of ranges) set(range)
  return { isBlocked: (address) => list.isBlocked(address, 0), figures: addingFigures(tookMs) }
}

function plain(
  addresses: readonly Uint8Array[],
  ranges: readonly { address: Uint8Array; prefixLength: number }[],
): Held {
  const byLength = new Map<number, Map<string, number>>()
  const tookMs: number[] = []
  const set = ({ address, prefixLength }: { address: Uint8Array; prefixLength: number }) => {
    const beganMs = performance.now()
    const entries = byLength.get(prefixLength) ?? new Map<string, number>()
    byLength.set(prefixLength, entries)
    entries.set(keyOf(address, prefixLength), FOREVER_MS)
    tookMs.push(performance.now() - beganMs)
  }
  for (const address of addresses) set({ address, prefixLength: 128 })
  for (const range of ranges) set(range)
  const isBlocked = (address: Uint8Array) => {
    for (const [prefixLength, entries] of byLength) {
      if ((entries.get(keyOf(address, prefixLength)) ?? 0) > 0) return true
    }
    return false
  }
  return { isBlocked, figures: addingFigures(tookMs) }
}

function addingFigures(tookMs: readonly number[]): Row {
  const micros = (share: number) => Math.round((percentile(tookMs, share) ?? 0) * 1000)
  return { addP99Micros: micros(0.99), addP9999Micros: micros(0.9999) }
}

function measure(isBlocked: (address: Uint8Array) => boolean, asked: readonly Uint8Array[]): Row {
  let found = 0
  // Time on the core: what else the machine does is not counted.
  const round = (from: number) => {
    const began = process.cpuUsage()
    for (let index = from; index < asked.length; index += 2)
      if (isBlocked(asked[index] ?? new Uint8Array(16))) found += 1
    const { user, system } = process.cpuUsage(began)
    return Math.round(((user + system) * 1000) / (asked.length / 2))
  }
  round(0)
  round(1)
  return { missNs: round(0), hitNs: round(1), found }
}

function memoryOf(): number {
  const { heapUsed, arrayBuffers } = process.memoryUsage()
  return heapUsed + arrayBuffers
}

function keyOf(address: Uint8Array, prefixLength: number): string {
  const whole = prefixLength >> 3
  let key = ''
  for (let index = 0; index < whole; index++) key += String.fromCharCode(address[index] ?? 0)
  const rest = prefixLength & 7
  return rest === 0 ? key : key + String.fromCharCode((address[whole] ?? 0) & (0xff << (8 - rest)))
}

function fill(address: Uint8Array, from: number): Uint8Array {
  for (let index = from; index < 16; index++) address[index] = Math.floor(Math.random() * 256)
  return address
}
