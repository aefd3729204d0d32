import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { describe, test } from 'node:test'
import { create, fromBinary, type MessageInitShape, toBinary } from '@bufbuild/protobuf'
import {
  RateLimitResponse_Code as Code,
  RateLimitRequestSchema,
  RateLimitResponseSchema,
  RateLimitResponse_RateLimit_Unit as Unit,
} from '@tollward/contracts/envoy'
import { type Charge, RateTable } from '@tollward/decision'
import { rateLimitIndex } from '@tollward/decision/testing'
import { type RateLimitOutcome, shouldRateLimit } from './rate-limit-service.ts'

const DOCUMENTS = `
apiVersion: tollward.dev/v1
kind: RateLimit
metadata: { name: edge }
spec:
  domain: edge
  rules:
    - { name: address, entries: [{ key: remote_address }], limit: { requests: 3, perSeconds: 60 } }
    - { name: all, entries: [{ key: generic_key, value: all }], limit: { requests: 5, perSeconds: 1 } }
    - { name: odd, entries: [{ key: odd }], limit: { requests: 5, perSeconds: 7 } }
---
apiVersion: tollward.dev/v1
kind: RateLimit
metadata: { name: trial }
spec:
  domain: edge
  mode: observe
  rules: [{ name: path, entries: [{ key: path }], limit: { requests: 1, perSeconds: 60 } }]
`
const NOW = 1_700_000_000_000
const all = { entries: [{ key: 'generic_key', value: 'all' }] }
const from = (value: string) => ({ entries: [{ key: 'remote_address', value }] })
const path = { entries: [{ key: 'path', value: '/a' }] }

/** A service with nothing counted yet. */
function service() {
  const charged: Charge[] = []
  const rates = new RateTable(
    100,
    () => {},
    (charge) => void charged.push(charge),
  )
  const world = { index: rateLimitIndex(DOCUMENTS), rates, hash: (text: string) => hash('sha256', text, 'hex') }
  const outcomes: RateLimitOutcome[] = []
  return {
    charged,
    outcomes,
    ask(request: MessageInitShape<typeof RateLimitRequestSchema>, nowMs = NOW) {
      const bytes = toBinary(RateLimitRequestSchema, create(RateLimitRequestSchema, { domain: 'edge', ...request }))
      const { answer, outcome } = shouldRateLimit(bytes, world, nowMs)
      outcomes.push(outcome)
      const response = fromBinary(RateLimitResponseSchema, answer)
      const headers = Object.fromEntries(response.responseHeadersToAdd.map(({ key, value }) => [key, value]))
      return { ...response, headers, codes: response.statuses.map(({ code }) => code) }
    },
  }
}

describe("Envoy's rate limit service", () => {
  test('a request is over its limit if one of its descriptors is, and counts under none of them then', () => {
    const { ask, outcomes } = service()
    for (let n = 0; n < 3; n++) assert.equal(ask({ descriptors: [from('a'), all] }).overallCode, Code.OK)
    for (let n = 0; n < 9; n++) {
      const { overallCode, codes } = ask({ descriptors: [all, from('a')] })
      assert.deepEqual([overallCode, codes], [Code.OVER_LIMIT, [Code.OK, Code.OVER_LIMIT]])
    }
    assert.equal(ask({ descriptors: [all] }).overallCode, Code.OK)
    assert.equal(ask({ descriptors: [all] }).overallCode, Code.OK)
    assert.equal(ask({ descriptors: [all] }).overallCode, Code.OVER_LIMIT)
    assert.equal(ask({ descriptors: [from('b')] }).overallCode, Code.OK)
    assert.equal(outcomes.filter((outcome) => outcome === 'over').length, 10)
  })

  test('each descriptor is told its limit, what is left of it, and when all of it is', () => {
    const { ask } = service()
    const { statuses } = ask({ descriptors: [from('a'), all, { entries: [{ key: 'unknown', value: 'x' }] }] })
    const [address, everything, unknown] = statuses
    assert.equal(address?.currentLimit?.name, 'edge/address')
    assert.deepEqual([address?.currentLimit?.requestsPerUnit, address?.currentLimit?.unit], [3, Unit.MINUTE])
    assert.deepEqual([address?.limitRemaining, address?.durationUntilReset?.seconds], [2, 20n])
    assert.deepEqual([everything?.limitRemaining, everything?.durationUntilReset?.nanos], [4, 200_000_000])
    assert.deepEqual([unknown?.code, unknown?.currentLimit], [Code.OK, undefined])
    assert.equal(ask({ descriptors: [{ entries: [{ key: 'odd', value: '1' }] }] }).statuses[0]?.currentLimit?.unit, 0)
  })

  test('hits count as so many requests, a descriptor’s own before the request’s', () => {
    const { ask } = service()
    assert.equal(ask({ descriptors: [all], hitsAddend: 3 }).statuses[0]?.limitRemaining, 2)
    assert.equal(ask({ descriptors: [all], hitsAddend: 3 }).overallCode, Code.OVER_LIMIT)
    assert.equal(ask({ descriptors: [{ ...all, hitsAddend: 2n }], hitsAddend: 3 }).statuses[0]?.limitRemaining, 0)
    const later = NOW + 60_000
    assert.equal(ask({ descriptors: [{ ...all, hitsAddend: 0n }] }, later).statuses[0]?.limitRemaining, 5)
    const back = { ...all, hitsAddend: 3n, isNegativeHits: true }
    assert.equal(ask({ descriptors: [back] }, later).statuses[0]?.limitRemaining, 5, 'what is given back costs nothing')
    assert.equal(ask({ descriptors: [{ ...all, hitsAddend: 2n ** 64n - 1n }] }, later).overallCode, Code.OVER_LIMIT)
    assert.equal(ask({ descriptors: [all, all, all] }, later).statuses[0]?.limitRemaining, 2)
  })

  test('clients hear of the limit that is nearest to its end, and when to come back', () => {
    const { ask } = service()
    const { headers } = ask({ descriptors: [all, from('a')] })
    assert.deepEqual(headers, { 'ratelimit-policy': '"edge/address";q=3;w=60', ratelimit: '"edge/address";r=2;t=20' })
    ask({ descriptors: [all, from('a')], hitsAddend: 2 })
    const refused = ask({ descriptors: [all, from('a')] }).headers
    assert.deepEqual(refused, {
      'ratelimit-policy': '"edge/address";q=3;w=60',
      ratelimit: '"edge/address";r=0;t=20',
      'retry-after': '20',
    })
    assert.equal(ask({ descriptors: [from('a')] }, NOW + 20_000).overallCode, Code.OK)
  })

  test('a document that only observes refuses nothing, and says what it would', () => {
    const { ask, outcomes } = service()
    for (let n = 0; n < 3; n++) assert.equal(ask({ descriptors: [path] }).overallCode, Code.OK)
    assert.deepEqual(outcomes, ['within', 'would-be-over', 'would-be-over'])
  })

  test('values of descriptors go no further than their hash', () => {
    const { ask, charged } = service()
    ask({ descriptors: [from('Bearer secret')] })
    assert.match(charged[0]?.key ?? '', /^edge\/address [0-9a-f]{64}$/)
  })

  test('another domain is under no limit; what is no question is an error', () => {
    const { ask, outcomes } = service()
    for (let n = 0; n < 9; n++) assert.equal(ask({ domain: 'other', descriptors: [all] }).overallCode, Code.OK)
    assert.deepEqual(new Set(outcomes), new Set(['no-limit']))
    assert.throws(() => ask({ descriptors: [] }), { code: 'invalid_argument' })
    assert.throws(() => ask({ domain: '', descriptors: [all] }), { code: 'invalid_argument' })
    const world = { index: rateLimitIndex(DOCUMENTS), rates: new RateTable(1, () => {}), hash: String }
    assert.throws(() => shouldRateLimit(new Uint8Array([0xff]), world, NOW), { code: 'invalid_argument' })
  })
})
