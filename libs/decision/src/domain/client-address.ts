import { type AddressRange, parseAddress, rangeContains } from '@tollward/contracts'

/**
 * Whose request this is: the peer, unless it is a trusted proxy; then the nearest address in X-Forwarded-For, read from the
 * right, that isn't one. Without trusted proxies X-Forwarded-For means nothing, since anybody can send it. An entry that is no
 * address ends the search at the last one that was.
 */
export function clientAddress(
  peer: Uint8Array,
  forwardedFor: readonly string[],
  trustedProxies: readonly AddressRange[],
): Uint8Array {
  let client = peer
  const entries = forwardedFor.flatMap((value) => value.split(','))
  for (let index = entries.length - 1; index >= 0 && isTrusted(client, trustedProxies); index--) {
    const address = parseAddress((entries[index] ?? '').trim())
    if (!address) break
    client = address
  }
  return client
}

/** Whether the address is one of a configured proxy. */
export function isTrusted(address: Uint8Array, trustedProxies: readonly AddressRange[]): boolean {
  return trustedProxies.some((range) => rangeContains(range, address))
}
