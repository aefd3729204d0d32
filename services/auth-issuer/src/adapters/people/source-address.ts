import type { IncomingMessage } from 'node:http'
import { ADDRESS_BYTES, type AddressRange, parseAddress } from '@tollward/contracts'
import { clientAddress } from '@tollward/decision'

/** Where a request comes from, 16 bytes: its connection's peer, or what trusted proxies in front say in X-Forwarded-For. */
export function sourceAddress(request: IncomingMessage, trustedProxies: readonly AddressRange[]): Uint8Array {
  const peer = parseAddress(request.socket.remoteAddress ?? '') ?? new Uint8Array(ADDRESS_BYTES)
  return clientAddress(peer, request.headersDistinct['x-forwarded-for'] ?? [], trustedProxies)
}
