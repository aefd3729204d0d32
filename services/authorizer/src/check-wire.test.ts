import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { fromBinary } from '@bufbuild/protobuf'
import { formatAddress, parseRange } from '@tollward/contracts'
import { CheckRequestSchema, CheckResponseSchema } from '@tollward/contracts/envoy'
import type { Admission, Rejection, RequestFacts } from '@tollward/decision'
import { checkAnswer, checkFacts, isGrpcQuestion } from './domain/check.ts'
import { readCheckRequest } from './domain/check-request.ts'
import { writeCheckResponse } from './domain/check-response.ts'

/*
 * The contract of envoy.service.auth.v3.Authorization/Check in bytes. Requests are built by the few functions below, which know nothing
 * of messages but tags and lengths; field numbers are those of Envoy's public interface.
 */

const TRUSTED = ['10.0.0.0/8'].flatMap((cidr) => parseRange(cidr) ?? [])

function varint(value: number): number[] {
  return value < 0x80 ? [value] : [(value & 0x7f) | 0x80, ...varint(Math.floor(value / 128))]
}

/** A field of wire type 2 (length-delimited): text, bytes, or fields of a message. */
function field(number: number, ...content: (string | Uint8Array)[]): Buffer {
  const bytes = Buffer.concat(content.map((part) => Buffer.from(part)))
  return Buffer.concat([Buffer.from(varint(number * 8 + 2)), Buffer.from(varint(bytes.length)), bytes])
}

function number(tag: number, value: number): Buffer {
  return Buffer.from([...varint(tag * 8), ...varint(value)])
}

const attributes = (...fields: Uint8Array[]) => field(1, ...fields)
const source = (...fields: Uint8Array[]) => field(1, ...fields)
const socketAddress = (address: string) => field(1, field(1, field(2, address), number(3, 40_000)))
const request = (...fields: Uint8Array[]) => field(4, ...fields)
const http = (...fields: Uint8Array[]) => field(2, ...fields)
const joined = (name: string, value: string) => field(3, field(1, name), field(2, value))
const headerMap = (...headers: Uint8Array[]) => field(13, ...headers)
const header = (name: string, value: string | Uint8Array) => field(1, field(1, name), field(3, value))
const textHeader = (name: string, value: string) => field(1, field(1, name), field(2, value))

const PEER = source(socketAddress('192.0.2.1'))
const ASKED = [field(2, 'GET'), field(4, '/a'), field(5, 'api.example'), field(6, 'https')]
const asking = (...more: Uint8Array[]) => attributes(PEER, request(http(...ASKED, ...more)))

interface Seen {
  method?: string
  target?: string
  host?: string
  scheme?: string | undefined
  address?: string
  headers?: readonly string[]
  principal?: string | undefined
  certificate?: string | undefined
  body?: { text: string; isWhole: boolean } | undefined
}

const SEEN: Seen = {
  method: 'GET',
  target: '/a',
  host: 'api.example',
  scheme: 'https',
  address: '192.0.2.1',
  headers: [],
}

function factsOf(bytes: Uint8Array): RequestFacts | undefined {
  const question = readCheckRequest(bytes)
  return question && checkFacts(question, TRUSTED)
}

function seen(bytes: Uint8Array): Seen | undefined {
  const facts = factsOf(bytes)
  if (!facts) return undefined
  const { method, target, host, scheme, address, headers, principal, body } = facts
  const certificate = facts.certificate?.()
  return {
    ...{ method, target, host, scheme, address: formatAddress(address), headers },
    ...(principal !== undefined && { principal }),
    ...(certificate && { certificate: Buffer.from(certificate).toString() }),
    ...(body && { body: { text: Buffer.from(body.bytes).toString('latin1'), isWhole: body.isWhole } }),
  }
}

const PEM = '-----BEGIN%20CERTIFICATE-----%0AREVS%0A-----END%20CERTIFICATE-----%0A'

const UNDERSTOOD: Record<string, [Uint8Array, Seen]> = {
  'the least that can be decided about': [asking(), SEEN],
  'the same in literal bytes': [
    Buffer.from(
      '0a360a130a110a0f12093139322e302e322e3118c0b802221f121d120347455422022f612a0b6170' +
        '692e6578616d706c6532056874747073',
      'hex',
    ),
    SEEN,
  ],
  'a path as it came, query included, nothing decoded': [
    attributes(PEER, request(http(field(2, 'GET'), field(4, '/%61/../b?x=%2F#'), field(5, 'h')))),
    { ...SEEN, target: '/%61/../b?x=%2F#', host: 'h', scheme: undefined },
  ],
  'query and fragment beside the path mean nothing': [asking(field(7, 'x=1'), field(8, 'f')), SEEN],
  'a scheme that is neither http nor https is not known': [asking(field(6, 'ftp')), { ...SEEN, scheme: undefined }],
  'joined headers': [
    asking(joined('accept', 'a,b'), joined('x', '1')),
    { ...SEEN, headers: ['accept', 'a,b', 'x', '1'] },
  ],
  'of a name that is there twice in the map, the last value': [
    asking(joined('x', '1'), joined('x', '2')),
    { ...SEEN, headers: ['x', '2'] },
  ],
  'a map entry with its value first, or without': [
    asking(field(3, field(2, 'v'), field(1, 'k')), field(3, field(1, 'e'))),
    { ...SEEN, headers: ['k', 'v', 'e', ''] },
  ],
  'raw headers apart, each byte a character': [
    asking(headerMap(header('x', '1'), header('x', Buffer.from([0xff, 0x00, 0x41])))),
    { ...SEEN, headers: ['x', '1', 'x', '\u00ff\0A'] },
  ],
  'header_map with values that are text': [
    asking(headerMap(textHeader('x', 'ü'))),
    { ...SEEN, headers: ['x', Buffer.from('ü').toString('latin1')] },
  ],
  'header_map in the place of headers, even where it is empty': [
    asking(joined('x', '1'), headerMap()),
    { ...SEEN, headers: [] },
  ],
  'header_map in parts': [
    asking(headerMap(header('a', '1')), headerMap(header('b', '2'))),
    { ...SEEN, headers: ['a', '1', 'b', '2'] },
  ],
  'no pseudo-headers among the headers, in either form': [
    asking(headerMap(header(':path', '/other'), header('a', '1'), header(':authority', 'other'))),
    { ...SEEN, headers: ['a', '1'] },
  ],
  'no pseudo-headers of the joined map': [asking(joined(':path', '/other')), SEEN],
  'of a field that is there twice, the last': [
    asking(field(4, '/b'), field(2, 'PUT')),
    { ...SEEN, target: '/b', method: 'PUT' },
  ],
  'messages in parts, merged': [
    Buffer.concat([
      attributes(request(http(field(2, 'GET'), field(4, '/a')))),
      attributes(source(field(4, 'spiffe://a/b'))),
      attributes(PEER, request(http(field(5, 'api.example')), http(field(6, 'https')))),
    ]),
    { ...SEEN, principal: 'spiffe://a/b' },
  ],
  'an address after a pipe': [
    attributes(source(field(1, field(2, field(1, '/run/x'))), socketAddress('192.0.2.1')), request(http(...ASKED))),
    SEEN,
  ],
  'fields that are not known, of every wire type, at every level': [
    Buffer.concat([
      ...unknown(),
      attributes(
        ...unknown(),
        source(...unknown(), socketAddress('192.0.2.1'), ...unknown()),
        request(
          ...unknown(),
          http(...unknown(), ...ASKED, headerMap(...unknown(), field(1, ...unknown(), field(1, 'a')))),
        ),
      ),
    ]),
    { ...SEEN, headers: ['a', ''] },
  ],
  'a field of another wire type than declared is not known': [asking(number(4, 7)), SEEN],
  'context extensions, service and SNI decide nothing': [
    attributes(
      source(socketAddress('192.0.2.1'), field(2, 'admin-service')),
      request(http(...ASKED)),
      field(10, field(1, 'host'), field(2, 'other.example')),
      field(12, field(1, 'other.example')),
    ),
    SEEN,
  ],
  'who the peer is in the mesh': [
    attributes(source(socketAddress('192.0.2.1'), field(4, 'spiffe://a/ü')), request(http(...ASKED))),
    { ...SEEN, principal: 'spiffe://a/ü' },
  ],
  'the peer\u2019s certificate': [
    attributes(source(socketAddress('192.0.2.1'), field(5, PEM)), request(http(...ASKED))),
    { ...SEEN, certificate: 'DER' },
  ],
  'a certificate that is none is none': [
    attributes(source(socketAddress('192.0.2.1'), field(5, 'nonsense%')), request(http(...ASKED))),
    SEEN,
  ],
  'an IPv6 peer': [
    attributes(source(socketAddress('2001:db8::1')), request(http(...ASKED))),
    { ...SEEN, address: '2001:db8::1' },
  ],
  'X-Forwarded-For of a peer that is no trusted proxy': [
    asking(headerMap(header('x-forwarded-for', '198.51.100.7'))),
    { ...SEEN, headers: ['x-forwarded-for', '198.51.100.7'] },
  ],
  'X-Forwarded-For of a trusted proxy: the last that is none, over all its fields': [
    attributes(
      source(socketAddress('10.0.0.1')),
      request(
        http(
          ...ASKED,
          headerMap(header('x-forwarded-for', '198.51.100.7'), header('X-Forwarded-For', '203.0.113.1, 10.0.0.2')),
        ),
      ),
    ),
    {
      ...SEEN,
      address: '203.0.113.1',
      headers: ['x-forwarded-for', '198.51.100.7', 'X-Forwarded-For', '203.0.113.1, 10.0.0.2'],
    },
  ],
  'a body, as text, of which nothing says that it is whole': [
    asking(field(11, 'ab')),
    { ...SEEN, body: { text: 'ab', isWhole: false } },
  ],
  'a body, as bytes': [
    asking(field(12, Buffer.from([0xff])), headerMap(header('x-envoy-auth-partial-body', 'false'))),
    { ...SEEN, headers: ['x-envoy-auth-partial-body', 'false'], body: { text: '\u00ff', isWhole: true } },
  ],
  'a body that is cut off': [
    asking(field(12, '{"a":'), headerMap(header('x-envoy-auth-partial-body', 'true'))),
    { ...SEEN, headers: ['x-envoy-auth-partial-body', 'true'], body: { text: '{"a":', isWhole: false } },
  ],
  'a body of which two things are said': [
    asking(
      field(12, 'a'),
      headerMap(header('x-envoy-auth-partial-body', 'false'), header('x-envoy-auth-partial-body', 'true')),
    ),
    {
      ...SEEN,
      headers: ['x-envoy-auth-partial-body', 'false', 'x-envoy-auth-partial-body', 'true'],
      body: { text: 'a', isWhole: false },
    },
  ],
  'an empty body that was sent': [
    asking(joined('x-envoy-auth-partial-body', 'false')),
    { ...SEEN, headers: ['x-envoy-auth-partial-body', 'false'], body: { text: '', isWhole: true } },
  ],
}

/** Varint, 64 bits, bytes, a group with groups in it, 32 bits; under numbers that no message here has. */
function unknown(): Buffer[] {
  const hex = [
    'f80fffffffffffffffffff01',
    'f90f0102030405060708',
    'fa0f03010203',
    'fb0ffb0f0801fc0f12020304fc0f',
    'fd0f01020304',
  ]
  return hex.map((text) => Buffer.from(text, 'hex'))
}

const REFUSED: Record<string, Uint8Array> = {
  'an empty message': Buffer.alloc(0),
  'no request': attributes(PEER),
  'no source': attributes(request(http(...ASKED))),
  'a peer that is a pipe': attributes(source(field(1, field(2, field(1, '/run/x')))), request(http(...ASKED))),
  'a peer that became a pipe': attributes(
    source(socketAddress('192.0.2.1'), field(1, field(2, ''))),
    request(http(...ASKED)),
  ),
  'a peer inside Envoy': attributes(
    source(socketAddress('192.0.2.1'), field(1, field(3, ''))),
    request(http(...ASKED)),
  ),
  'a peer that is no address': attributes(source(socketAddress('localhost')), request(http(...ASKED))),
  'no method': asking(field(2, '')),
  'no path, as of CONNECT': asking(field(4, '')),
  'no host': asking(field(5, '')),
  'text that is not UTF-8': asking(field(4, Buffer.from([0x2f, 0xff]))),
  'a length beyond the message that it is in': Buffer.concat([
    attributes(PEER, request(http(...ASKED, Buffer.from([0x22, 0x05])))),
    field(2, 'xxx'),
  ]),
  'a length of five gigabytes': Buffer.from('0a8080808014', 'hex'),
  'a number of eleven bytes': Buffer.from('f80fffffffffffffffffffff01', 'hex'),
  'field 0': Buffer.concat([asking(), Buffer.from([2, 0])]),
  'wire types 6 and 7': Buffer.concat([asking(), Buffer.from([0xfe, 0x0f])]),
  'the end of a group that did not begin': Buffer.concat([asking(), Buffer.from([0xfc, 0x0f])]),
  'a group that does not end': Buffer.concat([asking(), Buffer.from([0xfb, 0x0f])]),
  'a group that ends as another': Buffer.concat([asking(), Buffer.from([0xfb, 0x0f, 0x84, 0x10])]),
  'groups without end': Buffer.concat([asking(), Buffer.alloc(10_000, Buffer.from([0xfb, 0x0f]))]),
  garbage: Buffer.from('deadbeef'.repeat(100), 'hex'),
}

const ADMITTED: Admission = {
  admitted: true,
  id: 'd1',
  target: { host: 'api.example', path: '/a', query: '?x=1', segments: ['a'] },
  rewritten: { path: false, query: undefined },
  upstream: { set: [], remove: [] },
  headers: [],
  metadata: {},
}

const REJECTED: Rejection = {
  admitted: false,
  id: 'd2',
  reason: 'no-rule',
  status: 403,
  headers: [['content-type', 'application/problem+json']],
  body: '{}',
  detail: 'No, 50% no: ü',
}

/** A header in the place of any other: append {value: false} there, append_action OVERWRITE_IF_EXISTS_OR_ADD. */
const option = (tag: number, name: string, value: string) =>
  field(tag, field(1, field(1, name), field(2, value)), field(2), number(3, 2))
const structure = (fields: Record<string, string>) =>
  field(4, ...Object.entries(fields).map(([name, value]) => field(1, field(1, name), field(2, field(3, value)))))
const ok = (...fields: Uint8Array[]) => Buffer.concat([field(1), field(3, ...fields)])
const denied = (code: number, reason: string, ...fields: Uint8Array[]) =>
  Buffer.concat([field(1, number(1, code), field(2, reason)), field(2, ...fields)])

const ANSWERS: Record<string, [Admission | Rejection, boolean, Uint8Array]> = {
  'an admission is status 0, there, and an ok_response': [ADMITTED, false, Buffer.from('0a001a00', 'hex')],
  'headers for upstream overwrite, the others are removed': [
    { ...ADMITTED, upstream: { set: [['a', 'b']], remove: ['x', 'y'] } },
    false,
    Buffer.from('0a001a14120c0a060a0161120162120018022a01782a0179', 'hex'),
  ],
  'an empty value overwrites too': [
    { ...ADMITTED, upstream: { set: [['a', '']], remove: [] } },
    false,
    ok(field(2, field(1, field(1, 'a'), field(2)), field(2), number(3, 2), number(4, 1))),
  ],
  'headers for the client overwrite': [{ ...ADMITTED, headers: [['a', 'b']] }, false, ok(option(6, 'a', 'b'))],
  'no value ends a line or leaves ASCII': [
    { ...ADMITTED, upstream: { set: [['a', 'x\r\ny: ü\0\ud800%']], remove: [] } },
    false,
    ok(option(2, 'a', 'x%0D%0Ay: %C3%BC%00%EF%BF%BD%')),
  ],
  'a rewritten path is :path, with its query': [
    { ...ADMITTED, rewritten: { path: true, query: undefined } },
    false,
    ok(option(2, ':path', '/a?x=1')),
  ],
  'rewritten parameters are :path too': [
    { ...ADMITTED, rewritten: { path: false, query: { set: [['a b', 'ü&']], remove: ['c=d', 'e'] } } },
    false,
    ok(option(2, ':path', '/a?x=1')),
  ],
  'metadata outside of ok_response': [
    { ...ADMITTED, metadata: { decision: 'd1', subject: 'ü' } },
    false,
    Buffer.concat([ok(), structure({ decision: 'd1', subject: 'ü' })]),
  ],
  'a long value': [
    { ...ADMITTED, upstream: { set: [['a', 'x'.repeat(70_000)]], remove: [] } },
    false,
    ok(option(2, 'a', 'x'.repeat(70_000))),
  ],
  'a refusal is a code that is not 0, and a denied_response': [
    REJECTED,
    false,
    Buffer.concat([
      denied(
        7,
        'no-rule',
        field(1, number(1, 403)),
        option(2, 'content-type', 'application/problem+json'),
        field(3, '{}'),
      ),
      structure({ decision: 'd2', reason: 'no-rule' }),
    ]),
  ],
  'a refusal for a gRPC client: its sentence, its status, and no content type': [
    { ...REJECTED, status: 402, reason: 'payment-required' },
    true,
    Buffer.concat([
      denied(9, 'payment-required', field(1, number(1, 402)), option(2, 'grpc-status', '9'), field(3, 'No, 50% no: ü')),
      structure({ decision: 'd2', reason: 'payment-required' }),
    ]),
  ],
  'a status that Envoy does not have becomes 403': [
    { ...REJECTED, status: 299, headers: [], body: '' },
    false,
    Buffer.concat([denied(7, 'no-rule', field(1, number(1, 403))), structure({ decision: 'd2', reason: 'no-rule' })]),
  ],
}

const CODES: [number, number][] = [
  [400, 3],
  [401, 16],
  [402, 9],
  [403, 7],
  [408, 4],
  [413, 8],
  [429, 8],
  [431, 3],
  [501, 12],
  [502, 14],
  [503, 14],
  [504, 14],
]

describe('Check on the wire: what is understood', () => {
  for (const [name, [bytes, expected]] of Object.entries(UNDERSTOOD)) {
    test(name, () => assert.deepEqual(seen(bytes), expected))
  }
})

describe('Check on the wire: what is refused', () => {
  for (const [name, bytes] of Object.entries(REFUSED)) test(name, () => assert.equal(factsOf(bytes), undefined))
})

describe('Check on the wire: answers', () => {
  for (const [name, [decision, isGrpc, expected]] of Object.entries(ANSWERS)) {
    test(name, () => {
      const bytes = writeCheckResponse(checkAnswer(decision, isGrpc))
      assert.equal(Buffer.from(bytes).toString('hex'), Buffer.from(expected).toString('hex'))
      assert.equal(fromBinary(CheckResponseSchema, bytes).status?.code === 0, decision.admitted)
    })
  }

  test('each status has a code of its own kind, and none is 0', () => {
    for (const [status, code] of CODES) {
      const bytes = writeCheckResponse(checkAnswer({ ...REJECTED, status }, false))
      const { status: rpc, httpResponse } = fromBinary(CheckResponseSchema, bytes)
      assert.equal(httpResponse.case, 'deniedResponse')
      assert.deepEqual([rpc?.code, httpResponse.value.status?.code], [code, status])
    }
  })

  test('gRPC clients are told by the content type that Envoy goes by', () => {
    for (const [type, isGrpc] of [
      ['application/grpc', true],
      ['application/grpc+proto', true],
      ['application/grpc-web', false],
      ['application/json', false],
    ] as const) {
      const question = readCheckRequest(asking(headerMap(header('content-type', type))))
      assert.equal(question && isGrpcQuestion(question), isGrpc, type)
    }
  })

  test('the builders of these tests speak the protobuf that protobuf-es reads', () => {
    const message = fromBinary(CheckRequestSchema, asking(headerMap(header('a', 'b'))))
    assert.equal(message.attributes?.request?.http?.headerMap?.headers[0]?.key, 'a')
  })
})
