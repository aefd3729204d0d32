import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import fc from 'fast-check'
import {
  CALLER_ID_BYTES_MAX,
  type CallerName,
  callerKey,
  isCallerName,
  parseCallerKey,
  readCaller,
  writeCaller,
} from './caller.ts'
import { CallerSchema } from './gen/tollward/enforcement/v1/block_pb.ts'

const HASH = 'ab'.repeat(32)

const hashed = fc.record({
  kind: fc.constantFrom('token', 'grant'),
  value: fc.uint8Array({ minLength: 32, maxLength: 32 }).map((bytes) => Buffer.from(bytes).toString('hex')),
})
const named = fc
  .record({ kind: fc.constantFrom('client', 'subject'), value: fc.string({ unit: 'grapheme', minLength: 1 }) })
  .filter(isCallerName)
const caller: fc.Arbitrary<CallerName> = fc.oneof(hashed, named)

test('every caller survives being a key and a message, and no two share a key', () => {
  fc.assert(
    fc.property(caller, caller, (drawn, other) => {
      const one = { kind: drawn.kind, value: drawn.value }
      const key = callerKey(one)
      assert.match(key, /^[-/_=.a-zA-Z0-9]{1,255}$/)
      assert.deepEqual(parseCallerKey(key), one)
      assert.deepEqual(readCaller(create(CallerSchema, writeCaller(one))), one)
      assert.equal(callerKey(other) === key, other.kind === one.kind && other.value === one.value)
    }),
  )
})

test('what only looks like the key of a caller is none', () => {
  const longest = 'x'.repeat(CALLER_ID_BYTES_MAX)
  assert.deepEqual(parseCallerKey(callerKey({ kind: 'client', value: longest })), { kind: 'client', value: longest })
  const keys = [
    '',
    'token',
    'token.',
    `token.${'A'.repeat(64)}`,
    `token.${'a'.repeat(63)}`,
    `grant.${HASH}0`,
    `cat.${HASH}`,
    'client.',
    // Not what base64url makes of any bytes, and not of text.
    'client.A',
    'client.c2hvcB',
    'client.gA',
    `client.${Buffer.from('a\nb').toString('base64url')}`,
    `subject.${Buffer.from(`${longest}x`).toString('base64url')}`,
    `client.${Buffer.from('shop').toString('base64url')}.x`,
    `${'0'.repeat(32)}-128`,
  ]
  for (const key of keys) assert.equal(parseCallerKey(key), undefined, key)
  for (const value of ['', 'raw-token', HASH.toUpperCase()])
    assert.throws(() => callerKey({ kind: 'token', value }), RangeError)
})
