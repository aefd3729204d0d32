import { type AddressRange, formatRange, parseAddress, rangeContains } from '@tollward/contracts'

/** A wider range is a slip of the pen: /8 is the largest block of IPv4 that was ever given to one holder. */
const IPV4_PREFIX_MIN = 8
/** The smallest prefix that registries give to a provider. */
const IPV6_PREFIX_MIN = 32
const V4_MAPPED_BITS = 96
const V4_MAPPED = parseAddress('0.0.0.0') ?? new Uint8Array()
/** Ranges of at most 2^16 addresses are compared with the guarded ones; more addresses than that no node has. */
const GUARDED_BITS_MAX = 16

/** Why nobody means to block so many addresses, as the end of a sentence that begins with the range; undefined: they may. */
export function whyTooWide(range: AddressRange): string | undefined {
  const holdsAllOfIpv4 = range.prefixLength < V4_MAPPED_BITS && rangeContains(range, V4_MAPPED)
  const isIpv4 = range.prefixLength >= V4_MAPPED_BITS && isMapped(range)
  const prefixMin = isIpv4 ? V4_MAPPED_BITS + IPV4_PREFIX_MIN : IPV6_PREFIX_MIN
  if (!holdsAllOfIpv4 && range.prefixLength >= prefixMin) return undefined
  return `is too wide: an IPv4 range has at least /${IPV4_PREFIX_MIN}, an IPv6 range /${IPV6_PREFIX_MIN}`
}

function isMapped({ address }: AddressRange): boolean {
  return rangeContains({ address: V4_MAPPED, prefixLength: V4_MAPPED_BITS }, address)
}

/** Whether every address of the range is guarded. */
export function namesOnlyGuarded(range: AddressRange, guarded: readonly AddressRange[]): boolean {
  const bits = 128 - range.prefixLength
  if (bits > GUARDED_BITS_MAX) return false
  const inside = guarded.filter(({ address }) => rangeContains(range, address)).map(formatRange)
  return new Set(inside).size === 2 ** bits
}
