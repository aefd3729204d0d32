import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { type CallerName, parseRange, writeCaller } from '@tollward/contracts'
import { type Caller, CallerSchema } from '@tollward/contracts/enforcement'
import { AppError } from '@tollward/errors'
import { blockedKey, operatorBlock } from './block.ts'

const HASH = 'ab'.repeat(32)
const OPERATOR = { clientId: 'operator', subject: 'grace', tokenHash: HASH, grantHash: '' }
const guarded = ['127.0.0.1', '::1', '192.0.2.10', '192.0.2.11'].flatMap((text) => parseRange(text) ?? [])
const blockOf = (cidr: string) =>
  operatorBlock({ cidr, ttlSeconds: 60, reason: '' }, { by: OPERATOR, guarded, nowMs: 0 })
const refusal = (cidr: string) => codeOf(() => blockOf(cidr))
const codeOf = (block: () => unknown) => {
  try {
    block()
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

test('nobody blocks themselves, by any of the things that their token says', () => {
  const callerOf = (caller: CallerName) =>
    codeOf(() =>
      operatorBlock(
        { cidr: '', caller: create(CallerSchema, writeCaller(caller)), ttlSeconds: 60, reason: '' },
        { by: OPERATOR, guarded, nowMs: 0 },
      ),
    )
  assert.equal(callerOf({ kind: 'client', value: 'operator' }), 'failed_precondition')
  assert.equal(callerOf({ kind: 'subject', value: 'grace' }), 'failed_precondition')
  assert.equal(callerOf({ kind: 'token', value: HASH }), 'failed_precondition')
  assert.equal(callerOf({ kind: 'subject', value: 'operator' }), 'blocked')
  assert.equal(callerOf({ kind: 'grant', value: HASH }), 'blocked')
})

test('a caller that no key can name is refused, and what was sent is not repeated', () => {
  const callers: Caller['by'][] = [
    { case: 'tokenHash', value: 'a-raw-token' },
    { case: 'grantHash', value: HASH.toUpperCase() },
    { case: 'clientId', value: '' },
    { case: 'subject', value: 'x'.repeat(181) },
    { case: undefined },
  ]
  for (const by of callers) {
    assert.throws(
      () => blockedKey({ cidr: '', caller: create(CallerSchema, { by }) }),
      (error) => error instanceof AppError && error.code === 'invalid_argument' && !/raw-token|xxx/.test(error.message),
    )
  }
  const shop = create(CallerSchema, { by: { case: 'clientId', value: 'shop' } })
  assert.equal(
    codeOf(() => blockedKey({ cidr: '192.0.2.1', caller: shop })),
    'invalid_argument',
  )
})
