import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create, fromBinary, type MessageInitShape, toBinary } from '@bufbuild/protobuf'
import { CheckRequestSchema, CheckResponseSchema } from '@tollward/contracts/envoy'
import fc from 'fast-check'
import { readCheckRequest } from './check-request.ts'
import { type CheckAnswer, writeCheckResponse } from './check-response.ts'
import { comparable, reference } from './test-check-reference.ts'

/* The codec of Check beside protobuf-es: the same questions and answers for any message, and nothing but a refusal for anything else. */

type Message = MessageInitShape<typeof CheckRequestSchema>

const text = fc.oneof(fc.string({ maxLength: 20 }), fc.string({ unit: 'binary', maxLength: 200 }), fc.constant(''))
const name = fc.oneof(text, fc.constantFrom('authorization', ':path', 'x', '__proto__', '1'))
const bytes = fc.uint8Array({ maxLength: 300 })
const optional = <T>(value: fc.Arbitrary<T>) => fc.option(value, { nil: undefined })
const header = fc.record({ key: name, value: text, rawValue: bytes })
const http = fc.record({
  id: text,
  method: text,
  path: text,
  host: text,
  scheme: text,
  query: text,
  protocol: text,
  size: fc.bigInt({ min: -1n, max: 1n << 62n }),
  body: text,
  rawBody: bytes,
  headers: fc.dictionary(name, text, { maxKeys: 8 }),
})
const message: fc.Arbitrary<Message> = fc
  .record({
    http: optional(http),
    headerMap: optional(fc.array(header, { maxLength: 12 })),
    address: optional(fc.oneof(text, fc.ipV4(), fc.ipV6())),
    pipe: fc.boolean(),
    source: fc.boolean(),
    principal: text,
    certificate: text,
    service: text,
    extensions: fc.dictionary(text, text, { maxKeys: 3 }),
    sni: text,
  })
  .map(({ http: asked, headerMap, address, pipe, source, principal, certificate, service, extensions, sni }) => {
    const socket = { case: 'socketAddress' as const, value: { address: address ?? '' } }
    const at = pipe ? { case: 'pipe' as const, value: { path: '/run/x' } } : socket
    const peer = { service, principal, certificate, ...(address !== undefined && { address: { address: at } }) }
    return {
      attributes: {
        ...(source && { source: peer }),
        request: asked ? { http: { ...asked, ...(headerMap && { headerMap: { headers: headerMap } }) } } : {},
        contextExtensions: extensions,
        tlsSession: { sni },
      },
    }
  })

function encoded(init: Message): Uint8Array {
  return toBinary(CheckRequestSchema, create(CheckRequestSchema, init))
}

function assertSame(wire: Uint8Array): void {
  const expected = fromBinary(CheckRequestSchema, wire)
  const question = readCheckRequest(wire)
  assert.ok(question)
  const isMap = expected.attributes?.request?.http?.headerMap === undefined
  assert.deepEqual(comparable(question, isMap), comparable(reference(expected), isMap))
}

test('any CheckRequest is read as protobuf-es reads it', () => {
  fc.assert(
    fc.property(message, (init) => assertSame(encoded(init))),
    { numRuns: 1000 },
  )
})

test('any CheckRequest in two parts, one after the other, is read as protobuf-es merges them', () => {
  fc.assert(
    fc.property(message, message, (one, other) => assertSame(Buffer.concat([encoded(one), encoded(other)]))),
    { numRuns: 500 },
  )
})

test('whatever the bytes, reading gives a question or none, and never throws; what is cut off is none', () => {
  const isQuestionOrNone = (wire: Uint8Array) => {
    const question = readCheckRequest(wire)
    assert.ok(question === undefined || typeof question.path === 'string')
  }
  fc.assert(fc.property(fc.uint8Array({ maxLength: 400 }), isQuestionOrNone), { numRuns: 3000 })
  const changes = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 })
  fc.assert(
    fc.property(message, changes, fc.nat(), (init, bytesChanged, cut) => {
      const wire = encoded(init)
      if (wire.length === 0) return
      // All of it is one field, so no shorter part of it is whole.
      assert.equal(
        readCheckRequest(wire.subarray(0, 1 + (cut % (wire.length - 1 || 1)))) === undefined,
        wire.length > 1,
      )
      for (const [at, byte] of bytesChanged) wire[at % wire.length] = byte
      isQuestionOrNone(wire)
    }),
    { numRuns: 3000 },
  )
})

const field = fc.tuple(text, text)
const fields = fc.array(field, { maxLength: 6 })
const strings = fc.array(text, { maxLength: 6 })
const metadata = fc.dictionary(text, text, { maxKeys: 6 })
const answer: fc.Arbitrary<CheckAnswer> = fc.oneof(
  fc.record({
    set: fields,
    remove: strings,
    responseHeaders: fields,
    metadata,
  }),
  fc.record({
    code: fc.integer({ min: 1, max: 16 }),
    message: text,
    status: fc.integer({ min: 200, max: 599 }),
    headers: fields,
    body: fc.oneof(text, fc.string({ minLength: 0, maxLength: 40_000 })),
    metadata,
  }),
)

test('any answer is written so that protobuf-es reads the same', () => {
  fc.assert(
    fc.property(answer, (given) => {
      const read = fromBinary(CheckResponseSchema, writeCheckResponse(given))
      assert.deepEqual(read.dynamicMetadata ?? {}, wellFormed(given.metadata))
      const { httpResponse, status } = read
      if ('code' in given) {
        assert.equal(httpResponse.case, 'deniedResponse')
        assert.deepEqual([status?.code, httpResponse.value.status?.code], [given.code, given.status])
        assert.deepEqual([status?.message, httpResponse.value.body], [given.message, given.body].map(toWellFormed))
        assert.equal(httpResponse.value.headers.length, given.headers.length)
      } else {
        assert.equal(httpResponse.case, 'okResponse')
        assert.equal(status?.code, 0)
        const { headers, headersToRemove, responseHeadersToAdd } = httpResponse.value
        assert.deepEqual(headersToRemove, given.remove.map(toWellFormed))
        assert.equal(responseHeadersToAdd.length, given.responseHeaders.length)
        assert.deepEqual(
          headers.map(({ header: one }) => one?.key),
          given.set.map(([key]) => toWellFormed(key)),
        )
        for (const { header: one, append, appendAction, keepEmptyValue } of headers) {
          assert.match(one?.value ?? '', /^[\t\x20-\x7e]*$/)
          assert.deepEqual([append, appendAction, keepEmptyValue], [false, 2, one?.value === ''])
        }
      }
    }),
    { numRuns: 1000 },
  )
})

function toWellFormed(value: string): string {
  return value.toWellFormed()
}

function wellFormed(record: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(record).map((pair) => pair.map(toWellFormed)))
}
