import assert from 'node:assert/strict'
import { test } from 'node:test'
import { documentKey } from './parse.ts'
import { afterChange, afterSnapshot, documentsOfKind, readStored, type StoredText } from './stored.ts'

const stored = (name: string, change: Partial<StoredText> = {}): StoredText => ({
  format: 1,
  kind: 'Plan',
  name,
  yaml: `apiVersion: tollward.dev/v1
kind: Plan
metadata: { name: ${name} }
spec: { priceSats: 1000, requests: 10, confirmations: 1, payWithin: 15m, confirmWithin: 2h }
`,
  ...change,
})
const KEY = documentKey('Plan', 'a')

test('a stored document is read back; one that does not fit its place is a fault', () => {
  const reading = readStored(stored('a'))
  assert.ok('document' in reading && reading.document.metadata.name === 'a')
  const bad: [StoredText, RegExp][] = [
    [stored('a', { format: 2 }), /format 2/],
    [stored('a', { name: 'b' }), /Plan\/b is stored with the text of Plan\/a/],
    [stored('a', { yaml: 'kind: Plan' }), /Plan\/a:1: apiVersion: is required/],
    [stored('a', { yaml: `${stored('a').yaml}---\n${stored('c').yaml}` }), /more than one document/],
  ]
  for (const [text, fault] of bad) {
    const reading = readStored(text)
    assert.ok('fault' in reading)
    assert.match(reading.fault, fault)
  }
})

test('a bad stored document is reported and never replaces a good one', () => {
  const good = afterChange(new Map(), KEY, stored('a')).inForce
  const afterBad = afterChange(good, KEY, stored('a', { yaml: 'nonsense' }))
  assert.match(afterBad.fault ?? '', /Plan\/a:1/)
  assert.equal(afterBad.inForce.get(KEY), good.get(KEY))
  const afterBadSnapshot = afterSnapshot(good, new Map([[KEY, stored('a', { yaml: 'nonsense' })]]))
  assert.equal(afterBadSnapshot.faults.length, 1)
  assert.equal(afterBadSnapshot.inForce.get(KEY), good.get(KEY))
})

test('a deleted document is no longer in force, whether the deletion was seen or missed', () => {
  const good = afterChange(new Map(), KEY, stored('a')).inForce
  assert.equal(afterChange(good, KEY, undefined).inForce.size, 0)
  const snapshot = afterSnapshot(good, new Map([[documentKey('Plan', 'b'), stored('b')]]))
  assert.deepEqual([...documentsOfKind(snapshot.inForce, 'Plan').keys()], ['b'])
  assert.equal(documentsOfKind(snapshot.inForce, 'Client').size, 0)
})
