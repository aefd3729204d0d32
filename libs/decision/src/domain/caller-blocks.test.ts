import assert from 'node:assert/strict'
import { test } from 'node:test'
import { CallerBlocks } from './caller-blocks.ts'
import type { KnownToken } from './judge.ts'

const token = (clientId: string): KnownToken => ({
  ...{
    hash: 'a',
    clientId,
    subject: 'ada',
    grantHash: '',
    claims: () => ({}),
    scopes: new Set(),
    scope: '',
    audience: [],
  },
  ...{ selfRegistered: false, binding: undefined, identity: [] },
})
const client = (value: string, expiresAtMs: number) => ({ kind: 'client', value, expiresAtMs }) as const

test('a full table goes on with the blocks that it has, and takes new ones again as soon as old ones are over', () => {
  const blocks = new CallerBlocks(2)
  assert.deepEqual(
    ['a', 'b', 'c'].map((name) => blocks.set(client(name, 100), 0)),
    [true, true, false],
  )
  assert.equal(blocks.set(client('a', 200), 0), true, 'one that is held can be extended')
  assert.deepEqual(
    ['a', 'b', 'c'].map((name) => blocks.covering(token(name), 50)),
    ['client', 'client', undefined],
  )
  const draft = blocks.draft()
  assert.deepEqual(
    [draft.set(client('x', 100)), draft.set(client('y', 100)), draft.set(client('z', 100))],
    [true, true, false],
  )
  assert.equal(blocks.set(client('c', 200), 150) || blocks.set(client('c', 200), 150), true)
  assert.deepEqual(
    ['a', 'b', 'c'].map((name) => blocks.covering(token(name), 150)),
    ['client', undefined, 'client'],
  )
  blocks.swap(draft)
  assert.deepEqual([blocks.covering(token('c'), 50), blocks.covering(token('x'), 50)], [undefined, 'client'])
})

test('a block of a caller ends at its time although nobody lifts it', () => {
  const blocks = new CallerBlocks()
  blocks.set({ kind: 'subject', value: 'ada', expiresAtMs: 50 })
  assert.deepEqual([blocks.covering(token('x'), 49), blocks.covering(token('x'), 50)], ['subject', undefined])
})
