import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { formatAddress, parseAddress, parseRange } from '@tollward/contracts'
import { clientAddress } from './client-address.ts'

function client(peer: string, forwardedFor: string[], trusted: string[]): string {
  const address = parseAddress(peer)
  assert.ok(address)
  const ranges = trusted.map((cidr) => parseRange(cidr)).filter((range) => range !== undefined)
  return formatAddress(clientAddress(address, forwardedFor, ranges))
}

describe('client address', () => {
  test('without trusted proxies it is the peer, whatever X-Forwarded-For says', () => {
    assert.equal(client('192.0.2.1', ['127.0.0.1'], []), '192.0.2.1')
    assert.equal(client('192.0.2.1', ['127.0.0.1'], ['10.0.0.0/8']), '192.0.2.1')
  })

  test('behind trusted proxies it is the nearest address that is none of them', () => {
    assert.equal(client('10.0.0.1', ['198.51.100.7'], ['10.0.0.0/8']), '198.51.100.7')
    assert.equal(client('10.0.0.1', ['203.0.113.9, 198.51.100.7, 10.0.0.2'], ['10.0.0.0/8']), '198.51.100.7')
    assert.equal(client('10.0.0.1', ['203.0.113.9', '198.51.100.7,10.0.0.2'], ['10.0.0.0/8']), '198.51.100.7')
  })

  test('what a client wrote in front of its own address does not count', () => {
    assert.equal(client('10.0.0.1', ['127.0.0.1, 198.51.100.7'], ['10.0.0.0/8']), '198.51.100.7')
  })

  test('an entry that is no address ends the search at the last one that was', () => {
    assert.equal(client('10.0.0.1', ['198.51.100.7, unknown'], ['10.0.0.0/8']), '10.0.0.1')
    assert.equal(client('10.0.0.1', ['198.51.100.7, unknown, 10.0.0.2'], ['10.0.0.0/8']), '10.0.0.2')
    assert.equal(client('10.0.0.1', [], ['10.0.0.0/8']), '10.0.0.1')
  })
})
