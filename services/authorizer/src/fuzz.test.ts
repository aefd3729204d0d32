import { test } from 'node:test'
import { create, toBinary } from '@bufbuild/protobuf'
import { CheckRequestSchema } from '@tollward/contracts/envoy'
import { type Conversation, countBlocks, fuzz, fuzzBudget } from '@tollward/testkit/fuzz'

countBlocks(/\/authorizer\/src\/(?:domain\/check-request|adapters\/grpc-messages)\.ts/)
const { readMessages, readQuestion } = await import('./test-fuzz.ts')

const http = {
  ...{ method: 'GET', path: '/a?b=c', host: 'h', scheme: 'https', body: 'b', rawBody: Buffer.of(1, 2) },
  ...{ id: '1', size: 7n, protocol: 'HTTP/2', headers: { ':path': '/a', 'x-a': 'b', é: 'ü' } },
}
const headerMap = {
  headers: [
    { key: 'x-c', value: 'd' },
    { key: 'x-e', rawValue: Buffer.of(255) },
  ],
}
const source = {
  ...{ principal: 'spiffe://a/b', certificate: 'pem', service: 's' },
  address: { address: { case: 'socketAddress' as const, value: { address: '10.0.0.1' } } },
}
const WIRE = [http, { ...http, headerMap }].map((asked) =>
  toBinary(
    CheckRequestSchema,
    create(CheckRequestSchema, {
      attributes: { source, request: { http: asked }, contextExtensions: { a: 'b' }, tlsSession: { sni: 's' } },
    }),
  ),
)
const piece = (bytes: Uint8Array) => ({ lane: 0, bytes: Buffer.from(bytes), skipped: 0, unseen: 0 })
const QUESTIONS: readonly Conversation[] = WIRE.map((bytes) => [piece(bytes)])
const MESSAGES: readonly Conversation[] = [
  [Buffer.of(0, 0, 0, 0, 5, 1, 2, 3), Buffer.of(4, 5, 0, 0, 0, 0, 1, 9, 0), Buffer.of(0, 0, 0, 0)].map(piece),
]
/** Tags of each wire type, groups, lengths, and what is no UTF-8. */
const DICTIONARY = [
  ...[Buffer.of(0x0a), Buffer.of(0x12), Buffer.of(0x22), Buffer.of(0x6a), Buffer.of(0x5a), Buffer.of(0x62, 1, 65)],
  ...[
    Buffer.of(0x08, 1),
    Buffer.of(0x0b),
    Buffer.of(0x0c),
    Buffer.of(0x0d, 1, 2, 3, 4),
    Buffer.of(0x09, 1, 2, 3, 4, 5, 6, 7, 8),
  ],
  ...[Buffer.of(0x80, 0x80, 0x00), Buffer.of(0xff, 0xff, 0xff, 0xff, 0x0f), Buffer.of(0xc3, 0x28), Buffer.of(0x0a, 0)],
]
const HOW = { dictionary: DICTIONARY, lanes: 1 }

test('any question is read as protobuf-es reads it, and of no bytes anything is thrown', (context) => {
  context.diagnostic(
    JSON.stringify(fuzz({ ...HOW, target: readQuestion, seeds: QUESTIONS, budget: fuzzBudget(20_000) })),
  )
})

test('messages of gRPC are the same however their bytes came', (context) => {
  context.diagnostic(
    JSON.stringify(fuzz({ ...HOW, target: readMessages, seeds: MESSAGES, budget: fuzzBudget(10_000) })),
  )
})
