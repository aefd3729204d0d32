import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { parseDocuments, type RateLimit } from '@tollward/documents'
import fc from 'fast-check'
import { compileRateLimits, type DescriptorEntry, matchDescriptor } from './descriptors.ts'

const LIMIT = 'limit: { requests: 1, perSeconds: 1 }'

function documents(yaml: string): RateLimit[] {
  return parseDocuments(yaml, 'test') as RateLimit[]
}

function document(name: string, rules: string, more = ''): string {
  return `
apiVersion: tollward.dev/v1
kind: RateLimit
metadata: { name: ${name} }
spec:
  domain: d
  ${more}
  rules:
${rules}
---`
}

const RULES = `
    - { name: any, entries: [{ key: path }, { key: address }], ${LIMIT} }
    - { name: login, entries: [{ key: path, value: /login }, { key: address }], ${LIMIT} }
    - { name: office, entries: [{ key: path }, { key: address, value: 10.0.0.1 }], ${LIMIT} }
    - { name: both, entries: [{ key: path, value: /login }, { key: address, value: 10.0.0.2 }], ${LIMIT} }
    - { name: alone, entries: [{ key: path }], ${LIMIT} }
`

const entries = (path: string, address?: string): DescriptorEntry[] => [
  { key: 'path', value: path },
  ...(address === undefined ? [] : [{ key: 'address', value: address }]),
]

describe('descriptors', () => {
  const index = compileRateLimits(documents(document('edge', RULES)))
  const found = (...asked: Parameters<typeof entries>) => matchDescriptor(index, 'd', entries(...asked))

  test('the rule that gives more values counts, of as many the one that gives them earlier', () => {
    assert.equal(found('/login', '10.0.0.2')?.id, 'edge/both')
    assert.equal(found('/login', '10.0.0.1')?.id, 'edge/login')
    assert.equal(found('/other', '10.0.0.1')?.id, 'edge/office')
    assert.equal(found('/other', '10.0.0.3')?.id, 'edge/any')
    assert.equal(found('/login')?.id, 'edge/alone')
  })

  test('the values that a rule does not give count apart, and no others', () => {
    assert.deepEqual(found('/login', '10.0.0.1')?.apart, ['10.0.0.1'])
    assert.deepEqual(found('/other', '10.0.0.3')?.apart, ['/other', '10.0.0.3'])
    assert.deepEqual(found('/login', '10.0.0.2')?.apart, [])
  })

  test('another domain, other keys, or the same in another order are under no limit', () => {
    assert.equal(matchDescriptor(index, 'e', entries('/login')), undefined)
    assert.equal(matchDescriptor(index, 'd', entries('/a', 'b').toReversed()), undefined)
    assert.equal(matchDescriptor(index, 'd', [...entries('/a', 'b'), { key: 'more', value: 'c' }]), undefined)
    assert.equal(matchDescriptor(index, 'd', []), undefined)
    assert.equal(matchDescriptor(index, 'd', [{ key: '["path"]', value: '' }]), undefined)
  })

  test('of documents with one domain and the same rule, the first by name counts, whatever order they come in', () => {
    const [rule, other] = [`    - { name: r, entries: [{ key: k }], ${LIMIT} }`, 'mode: observe']
    const both = documents(document('b', rule) + document('a', rule, other))
    for (const order of [both, both.toReversed()]) {
      const match = matchDescriptor(compileRateLimits(order), 'd', [{ key: 'k', value: 'v' }])
      assert.deepEqual([match?.id, match?.observes], ['a/r', true])
    }
  })

  test('the index finds what reading every rule would find', () => {
    const value = fc.option(fc.constantFrom('x', 'y'), { nil: undefined })
    const rules = fc.uniqueArray(fc.array(value, { minLength: 1, maxLength: 3 }), {
      minLength: 1,
      maxLength: 8,
      selector: (values) => JSON.stringify(values.map((one) => one ?? null)),
    })
    const asked = fc.array(fc.constantFrom('x', 'y', 'z'), { minLength: 1, maxLength: 3 })
    const rank = (values: readonly (string | undefined)[]) => {
      const fixed = values.map((one) => (one === undefined ? '0' : '1')).join('')
      return `${fixed.replaceAll('0', '').length} ${fixed}`
    }
    fc.assert(
      fc.property(rules, asked, (given, values) => {
        const text = given.map((one, number) => {
          const list = one.map((fixed, place) => `{ key: k${place}${fixed === undefined ? '' : `, value: ${fixed}`} }`)
          return `    - { name: r${number}, entries: [${list.join(', ')}], ${LIMIT} }`
        })
        const best = [...given.entries()]
          .filter(([, one]) => one.length === values.length)
          .filter(([, one]) => one.every((fixed, place) => fixed === undefined || fixed === values[place]))
          .toSorted(([, a], [, b]) => (rank(a) < rank(b) ? 1 : -1))[0]
        const match = matchDescriptor(
          compileRateLimits(documents(document('n', text.join('\n')))),
          'd',
          values.map((one, place) => ({ key: `k${place}`, value: one })),
        )
        assert.equal(match?.id, best && `n/r${best[0]}`)
      }),
      { numRuns: 200 },
    )
  })

  test('a document with two rules of one name or the same entries is refused', () => {
    const twice = `    - { name: r, entries: [{ key: k }], ${LIMIT} }\n    - { name: r, entries: [{ key: k }], ${LIMIT} }`
    assert.throws(() => documents(document('a', twice)), /is the name of an earlier rule[\s\S]*are those of an earlier/)
  })
})
