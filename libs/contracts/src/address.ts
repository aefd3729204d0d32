import assert from 'node:assert/strict'
import ipaddr from 'ipaddr.js'

/** Bytes of an address on the wire: IPv6 in network order, IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2). */
export const ADDRESS_BYTES = 16

/** A range of addresses in the 128-bit form; host bits are zero. */
export interface AddressRange {
  readonly address: Uint8Array
  /** 0 to 128; an IPv4 /24 is 120. */
  readonly prefixLength: number
}

const V4_MAPPED_BITS = 96
const ZERO = '0'.charCodeAt(0)

/** Parses an IPv4 or IPv6 address. Zones, ports and IPv4 in octal or short forms are not addresses. Undefined if it is none. */
export function parseAddress(text: string): Uint8Array | undefined {
  if (!text.includes(':')) return parseV4(text)
  if (text.includes('%')) return undefined
  if (ipaddr.IPv6.isValid(text)) return Uint8Array.from(ipaddr.IPv6.parse(text).toByteArray())
  return undefined
}

/** Four numbers in decimal form, none with a leading zero; by hand, since each request has such an address. */
function parseV4(text: string): Uint8Array | undefined {
  const address = new Uint8Array(ADDRESS_BYTES)
  address[10] = 0xff
  address[11] = 0xff
  let at = 0
  for (let index = 12; index < ADDRESS_BYTES; index++) {
    const begin = at
    let number = 0
    for (let digit = text.charCodeAt(at) - ZERO; digit >= 0 && digit <= 9; digit = text.charCodeAt(++at) - ZERO) {
      number = number * 10 + digit
    }
    const digits = at - begin
    if (digits < 1 || digits > 3 || number > 255 || (digits > 1 && text.charCodeAt(begin) === ZERO)) return undefined
    if (index < ADDRESS_BYTES - 1 ? text[at++] !== '.' : at !== text.length) return undefined
    address[index] = number
  }
  return address
}

/** Writes an address as people do: dotted for IPv4, RFC 5952 for IPv6. */
export function formatAddress(address: Uint8Array): string {
  assert.equal(address.length, ADDRESS_BYTES)
  const v6 = new ipaddr.IPv6([...address])
  return v6.isIPv4MappedAddress() ? v6.toIPv4Address().toString() : v6.toRFC5952String()
}

/** Parses an address or CIDR. Undefined if it is neither, or if bits beyond the prefix are set: 10.0.0.1/8 is a mistake. */
export function parseRange(text: string): AddressRange | undefined {
  const [addressText = '', lengthText, ...rest] = text.split('/')
  const address = parseAddress(addressText)
  if (!address || rest.length > 0) return undefined
  if (lengthText === undefined) return { address, prefixLength: 128 }
  if (!/^(0|[1-9]\d{0,2})$/.test(lengthText)) return undefined
  const isV4 = !addressText.includes(':')
  const prefixLength = Number(lengthText) + (isV4 ? V4_MAPPED_BITS : 0)
  if (prefixLength > 128) return undefined
  return hostBitsAreZero(address, prefixLength) ? { address, prefixLength } : undefined
}

/** Writes a range as CIDR; a single address without its prefix length. */
export function formatRange({ address, prefixLength }: AddressRange): string {
  const text = formatAddress(address)
  if (prefixLength === 128) return text
  return `${text}/${text.includes(':') ? prefixLength : prefixLength - V4_MAPPED_BITS}`
}

/** Whether the range contains the address. */
export function rangeContains(range: AddressRange, address: Uint8Array): boolean {
  const wholeBytes = range.prefixLength >> 3
  for (let index = 0; index < wholeBytes; index++) if (range.address[index] !== address[index]) return false
  const rest = range.prefixLength & 7
  if (rest === 0) return true
  const mask = 0xff << (8 - rest)
  return ((range.address[wholeBytes] ?? 0) & mask) === ((address[wholeBytes] ?? 0) & mask)
}

/** The key of a range in the bucket `blocks`: 32 hexadecimal digits, "-", prefix length. */
export function rangeKey({ address, prefixLength }: AddressRange): string {
  return `${Buffer.from(address).toString('hex')}-${prefixLength}`
}

/** Reads a key of the bucket `blocks` back. Undefined if it is none. */
export function parseRangeKey(key: string): AddressRange | undefined {
  const match = /^([0-9a-f]{32})-(0|[1-9]\d{0,2})$/.exec(key)
  if (!match?.[1] || !match[2] || Number(match[2]) > 128) return undefined
  return { address: Uint8Array.from(Buffer.from(match[1], 'hex')), prefixLength: Number(match[2]) }
}

function hostBitsAreZero(address: Uint8Array, prefixLength: number): boolean {
  for (let bit = prefixLength; bit < 128; bit++) {
    if (((address[bit >> 3] ?? 0) >> (7 - (bit & 7))) & 1) return false
  }
  return true
}
