import { timestampMs } from '@bufbuild/protobuf/wkt'
import { type AddressRange, parseRangeKey, rangeContains } from '@tollward/contracts'
import type { Block } from '@tollward/contracts/enforcement'

/** The format of Block that this service reads. */
const BLOCK_FORMAT = 1
/** No range of more addresses than a node can guard consists of guarded ones only. */
const GUARDED_HOST_BITS_MAX = 10

/** A block as the bucket wants it. */
export interface WantedBlock {
  /** In the bucket. */
  readonly key: string
  readonly range: AddressRange
  readonly expiresAtMs: number
  readonly decidedAtMs: number
  readonly revision: number
}

/**
 * Reads an entry of the bucket `blocks`; the range is the key's. Undefined for a key that is no range, a format that a later
 * version wrote, and a block without an end, which no block may lack.
 */
export function readBlock(key: string, value: Block, revision: number): WantedBlock | undefined {
  const range = parseRangeKey(key)
  if (!range || hasHostBits(range) || value.format !== BLOCK_FORMAT || !value.expiresAt) return undefined
  const expiresAtMs = timestampMs(value.expiresAt)
  const decidedAtMs = value.decidedAt ? timestampMs(value.decidedAt) : 0
  return { key, range, expiresAtMs, decidedAtMs, revision }
}

/** Whether the address has bits beyond the prefix: then it is not the first of any range. */
function hasHostBits({ address, prefixLength }: AddressRange): boolean {
  const whole = prefixLength >> 3
  if (((address[whole] ?? 0) & (0xff >> (prefixLength & 7))) !== 0) return true
  for (let byte = whole + 1; byte < address.length; byte++) if (address[byte] !== 0) return true
  return false
}

/** Whether every address of the range is guarded, so that blocking it would do nothing. `guarded` holds no address twice. */
export function isOnlyGuarded(range: AddressRange, guarded: readonly Uint8Array[]): boolean {
  const hostBits = 128 - range.prefixLength
  if (hostBits > GUARDED_HOST_BITS_MAX) return false
  return guarded.filter((address) => rangeContains(range, address)).length === 2 ** hostBits
}
