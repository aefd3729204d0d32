import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { describe, test } from 'node:test'
import { parseAddress } from '@tollward/contracts'
import { ApiPolicySchema, parseDocuments } from '@tollward/documents'
import fc from 'fast-check'
import {
  breach,
  CONFUSING,
  CONFUSION_POLICY,
  NEVER_ADMITTED,
  ORDINARY,
  type WireRequest,
} from '../testing-confusion.ts'
import { admission, type Decision, rejection } from './answer.ts'
import { BlockList } from './block-list.ts'
import { CallerBlocks } from './caller-blocks.ts'
import { judge, type Verdict, type World } from './judge.ts'
import { compilePolicies } from './policy.ts'
import { RateTable } from './rate.ts'

const policies = compilePolicies(
  parseDocuments(CONFUSION_POLICY, 'confusion.yaml').map((document) => ApiPolicySchema.parse(document)),
)

/** What a stranger gets whose token is worth nothing. */
function decide({ method = 'GET', host = 'api.example', target, headers = [] }: WireRequest): Decision {
  const rates = () => new RateTable(1, () => {})
  const never = () => assert.fail('nobody is asked about a payment')
  const world: World = {
    policies,
    blocks: new BlockList([]),
    callerBlocks: new CallerBlocks(),
    sourceRates: rates(),
    callerRates: rates(),
    hashToken: (token) => hash('sha256', token),
    findToken: () => undefined,
    prove: () => undefined,
    standing: never,
    spend: never,
    quote: never,
    failed: (thrown) => {
      throw thrown
    },
  }
  const facts = {
    method,
    host,
    target,
    scheme: 'https',
    address: parseAddress('192.0.2.1') ?? assert.fail(),
    headers: headers.flat(),
  } as const
  const verdict = judge(facts, world, 0) as Verdict
  const { target: canonical, refusal } = verdict
  if (refusal || !canonical) return rejection('id', refusal ?? { reason: 'unavailable' }, '')
  return admission('id', verdict, canonical, facts.headers)
}

describe('requests that can be read in two ways', () => {
  for (const [name, requests] of Object.entries(CONFUSING)) {
    test(`${name}: no reader comes to what is protected`, () => {
      for (const request of requests) {
        const decision = decide(request)
        assert.equal(breach(decision, request), undefined, JSON.stringify(request))
        if (NEVER_ADMITTED.has(name)) assert.equal(decision.admitted, false, JSON.stringify(request))
      }
    })
  }

  test('there are three hundred of them at least, each another one', () => {
    const texts = Object.values(CONFUSING)
      .flat()
      .map((request) => JSON.stringify(request))
    assert.ok(new Set(texts).size >= 300)
    assert.equal(new Set(texts).size, texts.length)
  })

  test('of any path made of confusing parts, no reader comes to what is protected', () => {
    const part = fc.constantFrom(
      ...[
        '/',
        '//',
        '.',
        '..',
        '%2e',
        '%2E%2e',
        '%252e',
        '%2f',
        '%252f',
        '%5c',
        '\\',
        ';',
        ';x=1',
        '%00',
        '%09',
        '%3b',
        '%',
        '%25',
        '%u002e',
        '%c0%ae',
      ],
      ...[
        '%ef%bc%8f',
        '%ef%bc%8e',
        '%e2%80%a5',
        '%e2%88%95',
        '[',
        '|',
        '^',
        '#',
        '?',
        '+',
        '*',
        ' ',
        'a',
        '%61',
        'admin',
        '%61dmin',
        'people',
        'secret',
        '%73ecret',
        'files',
        'public',
        'pictures',
        '.png',
      ],
    )
    const path = fc.tuple(
      fc.constantFrom('/public', '/files', '/pictures', '/', '/files/a', '/items'),
      fc.array(part, { maxLength: 8 }),
    )
    fc.assert(
      fc.property(path, ([start, parts]) => {
        const request = { target: start + parts.join('') }
        assert.equal(breach(decide(request), request), undefined)
      }),
      { numRuns: 5000 },
    )
  })
})

test('requests that only look odd are admitted', () => {
  assert.ok(new Set(ORDINARY.map((request) => JSON.stringify(request))).size >= 200)
  for (const request of ORDINARY) {
    const decision = decide(request)
    const why = decision.admitted ? '' : `${decision.reason}: ${decision.body}`
    assert.equal(decision.admitted, true, `${JSON.stringify(request)} ${why}`)
  }
})
