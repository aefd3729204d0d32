import assert from 'node:assert/strict'
import { test } from 'node:test'
import { DocumentError, parseDocuments, parseExamples } from './parse.ts'

const EXAMPLES = `apiVersion: tollward.dev/v1
kind: PolicyExamples
metadata: { name: orders }
spec:
  policies: [orders.yaml]
  examples:
    - name: an order is read with the scope
      request: { url: "https://api.example/orders/7" }
      caller: { client: shop, scopes: [orders] }
      expect: { outcome: admitted, rule: orders/read, upstreamHeaders: { x-tollward-client: shop, cookie: null } }
    - name: nobody reads without a token
      request: { url: "https://api.example/orders/7" }
      expect: { status: 401 }
`

function faultsOf(read: () => unknown): string[] {
  try {
    read()
  } catch (error) {
    assert.ok(error instanceof DocumentError, String(error))
    return error.message.split('\n')
  }
  throw new assert.AssertionError({ message: 'the text was taken' })
}

test('examples are read with their defaults, and say where each of them stands', () => {
  const [source] = parseExamples(EXAMPLES, 'orders.examples.yaml')
  const [first, second] = source?.document.spec.examples ?? []
  assert.deepEqual(first?.request, {
    ...{ method: 'GET', url: 'https://api.example/orders/7', headers: {}, from: '192.0.2.1' },
    ...{ bodyIsWhole: true, isBlocked: false },
  })
  assert.equal(second?.caller, undefined)
  const fault = source?.fault(['spec', 'examples', 1, 'name'], 'fails')
  assert.deepEqual([fault?.file, fault?.line], ['orders.examples.yaml', 11])
})

test('what is wrong in examples is told with its line, and what is not known is not taken', () => {
  const wrong = EXAMPLES.replace('outcome: admitted', 'outcome: allowed')
    .replace('scopes: [orders]', 'scope: [orders]')
    .replace('{ status: 401 }', '{}')
    .replace('"https://api.example/orders/7" }\n      expect', '/orders/7 }\n      expect')
  assert.deepEqual(
    faultsOf(() => parseExamples(wrong, 'f.yaml')),
    [
      'f.yaml:9: spec.examples[0].caller.scope: is no known field; did you mean scopes?',
      'f.yaml:10: spec.examples[0].expect.outcome: must be one of admitted, refused, would-refuse',
      'f.yaml:12: spec.examples[1].request.url: is a whole URL, such as https://api.example/orders/7',
      'f.yaml:13: spec.examples[1].expect: expects nothing; give an outcome at least',
    ],
  )
  const twice = EXAMPLES.replace('nobody reads without a token', 'an order is read with the scope')
  assert.deepEqual(
    faultsOf(() => parseExamples(twice, 'f.yaml')),
    ['f.yaml:11: spec.examples[1].name: is the name of an earlier example'],
  )
})

test('examples are no document that could be applied, and documents are no examples', () => {
  assert.deepEqual(
    faultsOf(() => parseDocuments(EXAMPLES, 'f.yaml')),
    ['f.yaml:2: kind: are examples, which are not applied: run "npx --no tollward policy test" on this file'],
  )
  const policy = EXAMPLES.replace('PolicyExamples', 'ApiPolicy')
  assert.deepEqual(
    faultsOf(() => parseExamples(policy, 'f.yaml')),
    ['f.yaml:2: kind: is no PolicyExamples: keep it in a file of its own and name that in spec.policies'],
  )
})
