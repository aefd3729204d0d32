import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { changedQuery, QueryView } from './query.ts'

const value = (query: string, name: string) => new QueryView(query).value(name)

test('a parameter is decoded once', () => {
  assert.equal(value('?a=1&b=2', 'b'), '2')
  assert.equal(value('?%61=%2531+x', 'a'), '%31 x')
  assert.equal(value('?a', 'a'), '')
  assert.equal(value('?a==b=c', 'a'), '=b=c')
  assert.equal(value('?&&a=1&', 'a'), '1')
  assert.equal(value('', 'a'), undefined)
  assert.equal(value('?A=1', 'a'), undefined)
})

test('a parameter that can be read in two ways has no value', () => {
  assert.equal(value('?a=1&a=1', 'a'), false)
  assert.equal(value('?a=1&%61=1', 'a'), false)
  assert.equal(value('?a=%zz', 'a'), false)
  assert.equal(value('?a=%c0%af', 'a'), false)
  assert.equal(value('?%zz=1', 'a'), false, 'what name that is nobody knows')
  assert.equal(value('?x=1;a=2', 'a'), false)
  assert.equal(value('?a=1;x=2', 'a'), false)
  assert.equal(value('?a=1&x=2;y=3', 'a'), '1', 'others are as they are')
})

test('what is set or removed is so for every reader, and the rest stays as it came', () => {
  assert.equal(changedQuery('?a=1&b=%7e&c', { set: [['a', 'ü &']], remove: ['c'] }), '?b=%7e&a=%C3%BC%20%26')
  assert.equal(changedQuery('?%61=1&a=2&x=1;a=3', { set: [], remove: ['a'] }), '?x=1')
  assert.equal(changedQuery('?a=1', { set: [], remove: ['a'] }), '')
  assert.equal(changedQuery('', { set: [['a', '']], remove: [] }), '?a=')
  const pairs = fc.array(fc.tuple(fc.constantFrom('a', 'b', 'c', 'd e'), fc.string({ unit: 'grapheme' })))
  fc.assert(
    fc.property(pairs, fc.string({ unit: 'grapheme' }), (sent, set) => {
      const changed = new URLSearchParams(
        changedQuery(`?${new URLSearchParams(sent)}`, { set: [['a', set]], remove: ['b'] }),
      )
      assert.deepEqual(changed.getAll('a'), [set])
      assert.equal(changed.has('b'), false)
      assert.deepEqual(
        changed.getAll('d e'),
        sent.filter(([name]) => name === 'd e').map(([, value]) => value),
      )
    }),
  )
})
