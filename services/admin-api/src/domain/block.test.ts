import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseRange } from '@tollward/contracts'
import { AppError } from '@tollward/errors'
import { operatorBlock } from './block.ts'

const guarded = ['127.0.0.1', '::1', '192.0.2.10', '192.0.2.11'].flatMap((text) => parseRange(text) ?? [])
const blockOf = (cidr: string) =>
  operatorBlock({ cidr, ttlSeconds: 60, reason: '' }, { clientId: 'operator', guarded, nowMs: 0 })
const refusal = (cidr: string) => {
  try {
    blockOf(cidr)
  } catch (error) {
    return error instanceof AppError ? error.code : String(error)
  }
  return 'blocked'
}

test('only a range whose every address is guarded is refused for that', () => {
  assert.equal(refusal('192.0.2.10/31'), 'failed_precondition')
  assert.equal(refusal('::ffff:192.0.2.10/127'), 'failed_precondition')
  assert.equal(refusal('192.0.2.8/30'), 'blocked')
  assert.equal(refusal('127.0.0.66'), 'blocked')
  assert.equal(refusal('127.0.0.0/8'), 'blocked')
})

test('the widest ranges that are taken are named, and none that holds all of IPv4 passes as IPv6', () => {
  for (const cidr of ['10.0.0.0/8', '2001:db8::/32', '::ffff:10.0.0.0/104']) assert.equal(refusal(cidr), 'blocked')
  for (const cidr of ['10.0.0.0/7', '2001:db0::/31', '::ffff:0:0/96', '::/32', '::/64', '::/80', '0.0.0.0/0']) {
    assert.equal(refusal(cidr), 'invalid_argument', cidr)
  }
})
