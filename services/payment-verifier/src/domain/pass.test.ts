import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { type Pass, PassSchema, PassState } from '@tollward/contracts/payment'
import fc from 'fast-check'
import { giveBack, LEASE_REQUESTS_MAX, lease, passIdOf, suspend } from './pass.ts'

const pass = (change: Partial<Pass> = {}): Pass => ({
  ...create(PassSchema, { format: 1, passId: 'x', quotaRequests: 1000n, state: PassState.ACTIVE }),
  ...change,
})

type Step =
  | { readonly wanted: number }
  | { readonly unused: number; readonly recordId: string }
  | { readonly suspended: boolean }
const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    fc.record({ wanted: fc.integer({ min: 0, max: 400 }) }),
    fc.record({ unused: fc.integer({ min: 0, max: 400 }), recordId: fc.constantFrom('a', 'b', 'c', 'd') }),
    fc.record({ suspended: fc.boolean() }),
  ),
  { maxLength: 60 },
)

test('whatever is leased, given back, repeated and suspended, no more is out than was bought', () => {
  fc.assert(
    fc.property(steps, (sequence) => {
      let now = pass()
      let out = 0
      const records = new Set<string>()
      for (const step of sequence) {
        if ('wanted' in step) {
          const { granted, after } = lease(now, step.wanted)
          if (now.state === PassState.SUSPENDED) assert.equal(granted, 0)
          out += granted
          now = after ?? now
        } else if ('recordId' in step) {
          // A holder gives back no more than it holds.
          const unused = Math.min(step.unused, out)
          now = giveBack(now, unused, step.recordId) ?? now
          if (!records.has(step.recordId) && unused > 0) {
            records.add(step.recordId)
            out -= unused
          }
        } else now = suspend(now, step.suspended) ?? now
        assert.ok(out <= 1000, `${out} are out`)
        assert.equal(now.leasedRequests, BigInt(out))
      }
    }),
  )
})

test('the last chunk is what is left, and asking for more ends the pass', () => {
  const last = lease(pass({ leasedRequests: 990n }), 50)
  assert.equal(last.granted, 10)
  assert.equal(last.after?.state, PassState.ACTIVE)
  const over = lease(last.after ?? pass(), 1)
  assert.deepEqual([over.granted, over.after?.state, over.after?.stateChanges], [0, PassState.EXHAUSTED, 1])
  assert.deepEqual(lease(over.after ?? pass(), 1), { granted: 0 })
  assert.equal(giveBack(over.after ?? pass(), 5, 'r')?.state, PassState.ACTIVE)
})

test('a pass without quota is leased without being written, and one lease has its limit', () => {
  assert.deepEqual(lease(pass({ quotaRequests: 0n }), 70), { granted: 70 })
  assert.equal(lease(pass({ quotaRequests: 1_000_000n }), 4_000_000_000).granted, LEASE_REQUESTS_MAX)
})

test('an invoice has one pass id, which no other has', () => {
  assert.equal(passIdOf('a'), passIdOf('a'))
  assert.notEqual(passIdOf('a'), passIdOf('b'))
  assert.match(passIdOf('a'), /^[0-9a-f]{32}$/)
})
