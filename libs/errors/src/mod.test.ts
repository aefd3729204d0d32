import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AppError, ERROR_CODES, isErrorCode, toAppError } from './mod.ts'

test('every code means something at each edge', () => {
  for (const [code, { grpc, http }] of Object.entries(ERROR_CODES)) {
    assert.ok(grpc >= 1 && grpc <= 16, code)
    assert.ok(http >= 400 && http <= 504, code)
  }
})

test('what was thrown by somebody else tells nothing to the outside', () => {
  const cause = new Error('password=hunter2')
  const error = toAppError(cause)
  assert.equal(error.code, 'internal')
  assert.doesNotMatch(error.message, /hunter2/)
  assert.equal(error.cause, cause)
  const own = new AppError('not_found', 'There is none.')
  assert.equal(toAppError(own), own)
})

test('a code from a wire is only believed if it is one', () => {
  assert.ok(isErrorCode('not_found'))
  for (const text of ['', 'constructor', 'toString', 'NOT_FOUND']) assert.equal(isErrorCode(text), false)
})
