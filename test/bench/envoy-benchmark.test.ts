import assert from 'node:assert/strict'
import { test } from 'node:test'
import { requires } from '@tollward/testkit'
import { GLANCE } from './contest.ts'
import { run } from './envoy.bench.ts'

const skip = await requires({ tools: ['nats-server', 'envoy', 'taskset'] })

test('the benchmark of Envoy gets right answers with and without the authorizer', { skip }, async () => {
  const { rows } = await run(GLANCE)
  assert.equal(rows.length, 6)
  for (const { what, perSecond } of rows) assert.ok(perSecond > 0, what)
})
