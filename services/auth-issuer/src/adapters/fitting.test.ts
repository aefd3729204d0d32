import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create, toBinary } from '@bufbuild/protobuf'
import { ListUsersResponseSchema, UserSchema } from '@tollward/contracts/token'
import { fitting } from './fitting.ts'

const MESSAGE_BYTES_MAX = 1024 * 1024

test('a list has room in one message, and says how many are left out', () => {
  const all = Array.from({ length: 30_000 }, (_, index) => ({ subject: `subject-${index}`, name: 'x'.repeat(60) }))
  const { listed, leftOut } = fitting(UserSchema, all)
  assert.equal(listed.length + leftOut, all.length)
  assert.deepEqual([listed[0]?.subject, listed.at(-1)?.subject], ['subject-0', `subject-${listed.length - 1}`])
  const bytes = toBinary(ListUsersResponseSchema, create(ListUsersResponseSchema, { users: listed, leftOut })).length
  assert.ok(bytes < MESSAGE_BYTES_MAX && bytes > MESSAGE_BYTES_MAX / 2, `${bytes} bytes`)
  assert.deepEqual(fitting(UserSchema, all.slice(0, 2)).leftOut, 0)
})
