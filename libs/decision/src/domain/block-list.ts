import { type AddressRange, parseRangeKey } from '@tollward/contracts'

/** One block as the list holds it. */
export interface BlockEntry {
  readonly range: AddressRange
  readonly expiresAtMs: number
}

/** Addresses that no block touches: refusing ourselves would end the means to lift it. */
export const GUARDED_ADDRESSES = ['127.0.0.1', '::1'] as const

const WHOLE_ADDRESS = 128

/**
 * Which sources are blocked: exact addresses in one map, ranges in one map for each prefix length that occurs. Expiry is
 * checked at look-up, so a block ends in time even if nobody says so.
 */
export class BlockList {
  #byLength = new Map<number, Map<string, number>>()
  readonly #guarded: ReadonlySet<string>

  constructor(guarded: readonly Uint8Array[]) {
    this.#guarded = new Set(guarded.map((address) => maskedKey(address, WHOLE_ADDRESS)))
  }

  get size(): number {
    return this.#byLength.values().reduce((total, entries) => total + entries.size, 0)
  }

  /** Takes the complete state in the place of all that was known. */
  replace(entries: Iterable<BlockEntry>): void {
    const byLength = new Map<number, Map<string, number>>()
    for (const entry of entries) add(byLength, entry)
    this.#byLength = byLength
  }

  set(entry: BlockEntry): void {
    add(this.#byLength, entry)
  }

  /** Lifts a block by its key in the bucket. */
  remove(bucketKey: string): void {
    const range = parseRangeKey(bucketKey)
    if (!range) return
    const entries = this.#byLength.get(range.prefixLength)
    entries?.delete(maskedKey(range.address, range.prefixLength))
    if (entries?.size === 0) this.#byLength.delete(range.prefixLength)
  }

  /** Whether a block that has not expired covers this address, and the address is not guarded. */
  isBlocked(address: Uint8Array, nowMs: number): boolean {
    for (const [prefixLength, entries] of this.#byLength) {
      const expiresAtMs = entries.get(maskedKey(address, prefixLength))
      if (expiresAtMs !== undefined && expiresAtMs > nowMs) return !this.isGuarded(address)
    }
    return false
  }

  isGuarded(address: Uint8Array): boolean {
    return this.#guarded.has(maskedKey(address, WHOLE_ADDRESS))
  }
}

function add(byLength: Map<number, Map<string, number>>, { range, expiresAtMs }: BlockEntry): void {
  const entries = byLength.get(range.prefixLength) ?? new Map<string, number>()
  byLength.set(range.prefixLength, entries)
  entries.set(maskedKey(range.address, range.prefixLength), expiresAtMs)
}

/** The first bits of an address as a key: one character a byte. */
export function maskedKey(address: Uint8Array, prefixLength: number): string {
  const wholeBytes = prefixLength >> 3
  let key = ''
  for (let index = 0; index < wholeBytes; index++) key += String.fromCharCode(address[index] ?? 0)
  const rest = prefixLength & 7
  return rest === 0 ? key : key + String.fromCharCode((address[wholeBytes] ?? 0) & (0xff << (8 - rest)))
}
