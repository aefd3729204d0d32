import type { CheckRequest } from '@tollward/contracts/envoy'
import type { CheckQuestion } from './check-request.ts'

/** What a question says, by protobuf-es. */
export function reference({ attributes }: CheckRequest): CheckQuestion {
  const asked = attributes?.request?.http
  const source = attributes?.source
  const at = source?.address?.address
  const list = asked?.headerMap
    ? asked.headerMap.headers.map(({ key, value, rawValue }) => {
        const raw = Buffer.from(rawValue).toString('latin1')
        return [latin1(key), raw === '' ? latin1(value) : raw]
      })
    : Object.entries(asked?.headers ?? {}).map(([key, value]) => [latin1(key), latin1(value)])
  const rawBody = asked?.rawBody ?? new Uint8Array(0)
  return {
    method: latin1(asked?.method),
    path: latin1(asked?.path),
    host: latin1(asked?.host),
    scheme: latin1(asked?.scheme),
    headers: list.filter(([key = '']) => !key.startsWith(':')).flat(),
    headersAreJoined: asked?.headerMap === undefined,
    peer: at?.case === 'socketAddress' ? latin1(at.value.address) : undefined,
    principal: source?.principal ?? '',
    certificate: latin1(source?.certificate),
    body: rawBody.length > 0 ? rawBody : new TextEncoder().encode(asked?.body ?? ''),
  }
}

/** Strings are UTF-8 on the wire; of those that are fields of HTTP, each byte becomes a character. */
function latin1(value = ''): string {
  return Buffer.from(value).toString('latin1')
}

/** In an order of its own: that of a map's keys means nothing. */
export function comparable({ headers, body, ...rest }: CheckQuestion, isMap: boolean) {
  const pairs = Array.from({ length: headers.length / 2 }, (_, index) =>
    headers.slice(2 * index, 2 * index + 2).join('\0'),
  )
  return { ...rest, headers: isMap ? pairs.sort() : pairs, body: Buffer.from(body).toString('hex') }
}
