import assert from 'node:assert/strict'
import { test } from 'node:test'
import { newDecisionId } from './decision-id.ts'

test('decision ids are UUIDv7 that tell their time, and no two are the same', () => {
  const before = Date.now()
  const ids = Array.from({ length: 5000 }, newDecisionId)
  const after = Date.now()
  assert.equal(new Set(ids).size, ids.length)
  assert.equal(new Set(ids.map((id) => id.slice(19))).size, ids.length, 'the random halves differ too')
  for (const id of ids) {
    assert.match(id, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
    const timeMs = Number.parseInt(id.slice(0, 13).replace('-', ''), 16)
    assert.ok(timeMs >= before && timeMs <= after)
  }
})
