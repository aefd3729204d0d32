import { GUARDED_FILTER } from './layout.ts'
import type { BpfMap } from './map.ts'

/** Value of the map `guarded`: that there is an entry says all. */
const GUARDED = Buffer.from([1, 0, 0, 0])
/** Fibonacci hashing of 64 bits; the product's upper 9 bits are a bit's number. */
const HASH_FACTOR = 0x9e3779b97f4a7c15n
const HASH_SHIFT = 55n

/**
 * Makes the map of guarded addresses hold exactly these, and the filter before it; returns how many there was no room for. A bit
 * of the filter is set before its address is in the map and until it is gone: without it, the map is not asked.
 */
export function guardAddresses(
  { map }: { readonly map: (name: string) => BpfMap },
  addresses: readonly Uint8Array[],
): number {
  const [guarded, filter] = [map('guarded'), map('guarded_filter')]
  const tell = (of: Iterable<Uint8Array>) => filter.update(Buffer.alloc(4), filterOf(of))
  const held = [...guarded.keys()]
  const taken = addresses.slice(0, guarded.maxEntries)
  const wanted = new Set(taken.map(hex))
  tell([...held, ...taken])
  for (const key of held) if (!wanted.has(hex(key))) guarded.delete(key)
  for (const address of taken) guarded.update(address, GUARDED)
  tell(taken)
  return addresses.length - taken.length
}

/** Value of `guarded_filter`. */
function filterOf(addresses: Iterable<Uint8Array>): Buffer {
  const value = Buffer.alloc(GUARDED_FILTER.bytes)
  for (const address of addresses) {
    const bytes = Buffer.from(address)
    const word = bytes.readBigUInt64LE(0) ^ bytes.readBigUInt64LE(8)
    const bit = Number(BigInt.asUintN(64, word * HASH_FACTOR) >> HASH_SHIFT)
    value.writeUInt8(value.readUInt8(bit >> 3) | (1 << (bit & 7)), bit >> 3)
  }
  return value
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}
