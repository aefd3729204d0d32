import { create, toBinary } from '@bufbuild/protobuf'
import { Authorization, CheckRequestSchema } from '@tollward/contracts/envoy'
import type { GrpcTarget } from './grpc-load.ts'

/** Rules that are asked about in turn, half of which want a pass. */
export const RULES = 1000
const REQUEST_BYTES = 739

/** Questions as Envoy asks them with encode_raw_headers, of REQUEST_BYTES bytes, each of the next token and the next rule. */
export function questions(tokens: readonly string[], kind: 'plain' | 'paid'): () => Uint8Array {
  const [first = ''] = tokens
  const marker = digits(9999)
  const template = checkRequest(`/${kind}/${marker}/42?page=2`, first)
  const tokenAt = template.indexOf(first)
  const pathsAt = [template.indexOf(marker), template.lastIndexOf(marker)]
  let asked = 0
  return () => {
    const index = asked++
    template.write(tokens[index % tokens.length] ?? '', tokenAt, 'latin1')
    const rule = ((index * 2) % RULES) + (kind === 'paid' ? 1 : 0)
    for (const at of pathsAt) template.write(digits(rule), at, 'latin1')
    return template
  }
}

function checkRequest(path: string, token: string): Buffer {
  const fields: [string, string][] = [
    [':authority', 'api.example.com'],
    [':path', path],
    [':method', 'GET'],
    [':scheme', 'https'],
    ['user-agent', 'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36'],
    ['accept', 'application/json'],
    ['accept-encoding', 'gzip, deflate, br'],
    ['authorization', `Bearer ${token}`],
    ['x-forwarded-proto', 'https'],
    ['x-forwarded-for', '203.0.113.9'],
    ['x-request-id', '0b2b1f1e-4a4e-4a52-8f5c-1d3a5a1b2c3d'],
  ]
  const socketAddress = { address: '203.0.113.9', portSpecifier: { case: 'portValue' as const, value: 43_210 } }
  const encode = (padding: string) => {
    const headers = [...fields, ['cookie', padding] as const].map(([key, value]) => ({
      key,
      rawValue: Buffer.from(value),
    }))
    const http = {
      id: '12345678901234567890',
      method: 'GET',
      path,
      host: 'api.example.com',
      scheme: 'https',
      protocol: 'HTTP/1.1',
      size: -1n,
    }
    const attributes = {
      source: { address: { address: { case: 'socketAddress' as const, value: socketAddress } } },
      request: { http: { ...http, headerMap: { headers } } },
    }
    return Buffer.from(toBinary(CheckRequestSchema, create(CheckRequestSchema, { attributes })))
  }
  return encode('c'.repeat(Math.max(0, REQUEST_BYTES - encode('').length)))
}

export function target(port: number, next: () => Uint8Array): GrpcTarget {
  return {
    port,
    path: `/${Authorization.typeName}/Check`,
    next,
    // CheckResponse begins with status; admitted, that is an empty message.
    accepts: (answer) => answer[0] === 0x0a && answer[1] === 0,
  }
}

/** As rules and paths number themselves. */
export function digits(index: number): string {
  return String(index).padStart(4, '0')
}
