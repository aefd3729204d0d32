import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually } from './mod.ts'

test('the first value that is there is returned', async () => {
  const answers = [undefined, null, false, 0]
  assert.equal(await eventually(() => answers.shift(), { what: 'an answer', intervalMs: 1 }), 0)
})

test('a condition that throws is asked again, and its last error is the cause', async () => {
  let asked = 0
  const condition = () => {
    asked += 1
    throw new Error(`refused ${asked}`)
  }
  await assert.rejects(eventually(condition, { what: 'an answer', timeoutMs: 50, intervalMs: 1 }), (error) => {
    assert.ok(error instanceof Error && error.cause instanceof Error)
    assert.match(error.message, /within 50 ms: an answer; last: Error: refused/)
    assert.equal(error.cause.message, `refused ${asked}`)
    return asked > 1
  })
})

test('a condition that hangs does not outlive the deadline', async () => {
  const hanging = () => new Promise<never>(() => {})
  await assert.rejects(eventually(hanging, { what: 'an answer', timeoutMs: 20 }), /never answered/)
})

test('the last value is named', async () => {
  await assert.rejects(
    eventually(() => false, { what: 'yes', timeoutMs: 20 }),
    /yes; last: false/,
  )
})
