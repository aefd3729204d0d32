import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, request } from 'node:http'
import type { AddressInfo } from 'node:net'
import { test } from 'node:test'
import { type AddressRange, formatAddress, parseRange } from '@tollward/contracts'
import { sourceAddress } from './source-address.ts'

async function sourceSeen(forwardedFor: string[], trustedProxies: readonly AddressRange[]): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>()
  const server = createServer((received, response) => {
    resolve(formatAddress(sourceAddress(received, trustedProxies)))
    response.end()
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const sent = request({ host: '127.0.0.1', port, headers: { 'x-forwarded-for': forwardedFor }, agent: false })
  sent.end()
  await once(sent, 'response')
  server.close()
  return promise
}

test('X-Forwarded-For says where a request comes from only if a trusted proxy sent it', async () => {
  const proxies = ['127.0.0.1', '10.0.0.0/8'].flatMap((text) => parseRange(text) ?? [])
  assert.equal(await sourceSeen(['198.51.100.1'], []), '127.0.0.1', 'anybody can send the field')
  assert.equal(await sourceSeen(['198.51.100.1'], proxies), '198.51.100.1')
  assert.equal(
    await sourceSeen(['203.0.113.9, 198.51.100.1', '10.1.2.3'], proxies),
    '198.51.100.1',
    'not what is claimed before',
  )
})
