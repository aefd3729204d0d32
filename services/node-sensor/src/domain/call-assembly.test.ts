import assert from 'node:assert/strict'
import { test } from 'node:test'
import { toBinary } from '@bufbuild/protobuf'
import { parseAddress } from '@tollward/contracts'
import { Binding, type CapturedCall, CapturedCallSchema, Side } from '@tollward/contracts/sensor'
import type { Chunk } from '@tollward/libbpf'
import fc from 'fast-check'
import { type AssemblyOptions, CallAssembly } from './call-assembly.ts'

const BOOTED_AT_MS = 1_700_000_000_000
/** More of them in the long runs. */
const FUZZ_RUNS = Number(process.env.TOLLWARD_FUZZ_RUNS ?? 1000)
const SECRET = 'hunter2-s3cr3t'

/** Chunks of connections, and the calls that came of them. */
function captured(options: Partial<AssemblyOptions> = {}) {
  const calls: CapturedCall[] = []
  const lost: string[] = []
  const assembly = new CallAssembly({
    onCall: (call) => void calls.push(call),
    onLost: (reason) => void lost.push(reason),
    ownerOf: ({ pid, comm }) => ({ processId: pid, processName: comm, podUid: 'pod-1' }),
    bootedAtMs: () => BOOTED_AT_MS,
    ...options,
  })
  let atNs = 0n
  const push = (connection: number, direction: Chunk['direction'], text: string, more: Partial<Chunk> = {}) => {
    atNs += 1_500_000n
    const bytes = Buffer.from(text, 'latin1')
    assembly.push({
      ...{ connection: BigInt(connection), direction, atNs, bytes, skipped: 0, total: bytes.length, closed: false },
      owner: { pid: 7, comm: 'api', cgroupId: 1n },
      addresses: { local: address('10.0.0.1'), localPort: 8443, peer: address('10.0.0.2'), peerPort: 40_000 },
      ...{ binding: 'certain', side: 'server', source: 'openssl', ...more },
    })
  }
  return { calls, lost, assembly, push }
}

function address(text: string): Uint8Array {
  const bytes = parseAddress(text)
  assert(bytes)
  return bytes
}

test('a call is told whole: what, who, when, how much and of what kinds, and never a value', () => {
  const { calls, push } = captured()
  const body = `{"email":"alice@example.com","password":"${SECRET}"}`
  push(
    1,
    'received',
    `POST /Users/bob@example.com/orders?api_key=${SECRET}#x HTTP/1.1\r\nHost: API.example:8443\r\nAuthorization: Bearer ${SECRET}\r\n` +
      `Cookie: sid=${SECRET}\r\nX-Note: 4111 1111 1111 1111\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
  )
  push(1, 'sent', 'HTTP/1.1 201 Created\r\nSet-Cookie: sid=alice@example.com\r\nContent-Length: 22\r\n\r\n')
  push(1, 'sent', 'DE89370400440532013000')
  const [call] = calls
  assert(call)
  assert.deepEqual(
    { ...call, $typeName: undefined, owner: undefined, beganAt: undefined, took: undefined },
    {
      ...{ $typeName: undefined, owner: undefined, beganAt: undefined, took: undefined },
      ...{ side: Side.SERVER, binding: Binding.CERTAIN, protocol: 'http/1.1', source: 'openssl' },
      ...{ localAddress: address('10.0.0.1'), localPort: 8443, peerAddress: address('10.0.0.2'), peerPort: 40_000 },
      ...{ method: 'POST', host: 'api.example:8443', path: '/Users/{email}/orders', status: 201 },
      ...{ requestBytes: BigInt(body.length), responseBytes: 22n, partial: false },
      requestHeaders: ['authorization', 'content-length', 'cookie', 'host', 'x-note'],
      responseHeaders: ['content-length', 'set-cookie'],
      credentials: ['bearer', 'cookie', 'in-query'],
      sensitive: ['card-number', 'email', 'iban', 'password'],
    },
  )
  assert.deepEqual([call.owner?.processId, call.owner?.processName, call.owner?.podUid], [7, 'api', 'pod-1'])
  assert.equal(Number(call.beganAt?.seconds) * 1000 + Number(call.beganAt?.nanos) / 1e6, BOOTED_AT_MS + 1)
  assert.deepEqual([call.took?.seconds, call.took?.nanos], [0n, 3_000_000])
  const published = Buffer.from(toBinary(CapturedCallSchema, call)).toString('latin1')
  for (const value of [SECRET, 'alice', 'bob', '4111', 'DE89']) assert.ok(!published.includes(value), value)
})

test('which end the process is follows from what it sends, where the kernel did not see the connection begin', () => {
  const { calls, push } = captured()
  const ask = 'GET / HTTP/1.1\r\nHost: a\r\n\r\n'
  const answer = 'HTTP/1.1 204 No Content\r\n\r\n'
  push(1, 'received', ask, { side: undefined, addresses: undefined, binding: 'none' })
  push(1, 'sent', answer, { side: undefined, addresses: undefined, binding: 'none' })
  push(2, 'sent', ask, { side: undefined, binding: 'token' })
  push(2, 'received', answer, { side: undefined, binding: 'token' })
  assert.deepEqual(
    calls.map(({ side, binding, localPort }) => ({ side, binding, localPort })),
    [
      { side: Side.SERVER, binding: Binding.NONE, localPort: 0 },
      { side: Side.CLIENT, binding: Binding.TOKEN, localPort: 8443 },
    ],
  )
})

test('host and path are what was asked for, in whichever form, made harmless', () => {
  const cases = [
    ['GET http://user:pw@Shop.example:80/a?x=1 HTTP/1.1\r\nHost: other\r\n', 'shop.example:80', '/a'],
    ['OPTIONS * HTTP/1.1\r\nHost: a.example\r\n', 'a.example', '*'],
    ['CONNECT db.example:5432 HTTP/1.1\r\nHost: a\r\n', 'db.example:5432', ''],
    ['GET /a HTTP/1.1\r\nHost: <script>\r\n', '', '/a'],
    ['GET /\xff\x01"b HTTP/1.1\r\n', '', '/%FF%01"b'],
    [`GET /${'p'.repeat(5000)} HTTP/1.1\r\n`, '', `/${'p'.repeat(1023)}`],
  ] as const
  for (const [head, host, path] of cases) {
    const { calls, push } = captured()
    push(1, 'received', `${head}\r\n`)
    push(1, 'sent', 'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n')
    assert.deepEqual([calls[0]?.host, calls[0]?.path], [host, path], head)
  }
})

test('content that is compressed or binary is not taken for what it is not', () => {
  const { calls, push } = captured()
  for (const field of ['Content-Encoding: gzip', 'Content-Type: image/png', 'Content-Type: text/plain']) {
    push(1, 'received', 'GET / HTTP/1.1\r\n\r\n')
    push(1, 'sent', `HTTP/1.1 200 OK\r\nContent-Length: 17\r\n${field}\r\n\r\nalice@example.com`)
  }
  assert.deepEqual(
    calls.map(({ sensitive }) => sensitive),
    [[], [], ['email']],
  )
})

test('connections beyond the room: the one silent for longest goes, its call is told as it is and counted', () => {
  const { calls, lost, assembly, push } = captured({ connectionsMax: 100 })
  push(1, 'received', 'GET /first HTTP/1.1\r\n\r\n')
  for (let connection = 2; connection <= 300; connection += 1) {
    push(connection, 'received', `GET /${connection} HTTP/1.1\r\n\r\n`)
    if (connection < 150) push(1, 'sent', 'HTTP/1.1 100 Continue\r\n\r\n')
  }
  assert.equal(assembly.connections, 100)
  assert.equal(lost.length, 200)
  assert.deepEqual(new Set(lost), new Set(['evicted']))
  assert.equal(calls.length, 200)
  assert.ok(calls.findIndex(({ path }) => path === '/first') > 100)
  assert.ok(calls.every(({ status, partial }) => status === 0 && partial))
  assembly.close()
  assert.equal(calls.length, 300)
})

test('a connection that ends is forgotten, and what waits on it is told', () => {
  const { calls, assembly, push } = captured()
  push(1, 'received', 'GET /a HTTP/1.1\r\n\r\n')
  push(1, 'received', '', { closed: true })
  push(1, 'received', '', { closed: true })
  assert.deepEqual([calls.length, assembly.connections], [1, 0])
})

test('a connection that says nothing for ten minutes is forgotten, and what waits on it is told', () => {
  const { calls, assembly, push } = captured()
  push(1, 'received', 'GET /silent HTTP/1.1\r\n\r\n')
  push(2, 'received', 'GET /later HTTP/1.1\r\n\r\n', { atNs: 300_000_000_000n })
  assembly.forgetSilent(600_000_000_000n)
  assert.equal(assembly.connections, 2)
  assembly.forgetSilent(601_500_000_000n)
  assert.deepEqual([assembly.connections, calls.map(({ path }) => path)], [1, ['/silent']])
})

test('whatever the kernel captures, nothing is thrown and every call can be published', () => {
  const text = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 60 }),
    fc.constantFrom(
      'GET /a@b.cd?token=1 HTTP/1.1\r\nHost: é\r\n\r\n',
      'HTTP/1.1 200 OK\r\n\r\n',
      'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
    ),
  )
  const step = fc.record({
    connection: fc.nat({ max: 3 }),
    direction: fc.constantFrom('sent' as const, 'received' as const),
    texts: fc.array(text, { maxLength: 3 }),
    skipped: fc.constantFrom(0, 0, 5),
    side: fc.constantFrom('server' as const, 'client' as const, undefined),
    closed: fc.constantFrom(false, false, false, true),
  })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const { calls, assembly, push } = captured({ connectionsMax: 2 })
      for (const { connection, direction, texts, ...more } of steps) push(connection, direction, texts.join(''), more)
      assembly.close()
      for (const call of calls) toBinary(CapturedCallSchema, call)
    }),
    { numRuns: FUZZ_RUNS },
  )
})
