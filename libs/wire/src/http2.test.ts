import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect as connectHttp2, constants, createServer as createHttp2Server } from 'node:http2'
import { type AddressInfo, connect, createServer } from 'node:net'
import { test } from 'node:test'
import fc from 'fast-check'
import { CLIENT_PREFACE } from './frames.ts'
import { encodeFields } from './hpack.ts'
import { Connection, type Step } from './test-recorder.ts'

/** More of them in the long runs. */
const FUZZ_RUNS = Number(process.env.TOLLWARD_FUZZ_RUNS ?? 1000)
const CALLS = 40

/** What a real client and a real server, both of Node, said to each other over one connection. */
async function recorded(): Promise<Step[]> {
  const server = createHttp2Server()
  server.on('stream', (stream, headers) => {
    const number = Number(String(headers[':path']).slice(1).split('?')[0])
    let asked = 0
    stream.on('data', (bytes: Buffer) => {
      asked += bytes.length
    })
    stream.on('end', () => {
      stream.respond(
        { ':status': number % 5 === 0 ? 404 : 200, 'x-number': String(number), 'x-same': 'as always' },
        { waitForTrailers: number % 3 === 0 },
      )
      stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '7' }))
      stream.end(Buffer.alloc(number * 100 + asked, 'a'))
    })
  })
  const backend = server.listen(0, '127.0.0.1')
  await once(backend, 'listening')
  const steps: Step[] = []
  const proxy = createServer((client) => {
    const upstream = connect((backend.address() as AddressInfo).port, '127.0.0.1')
    client.on('data', (bytes) => {
      steps.push({ to: 'server', text: bytes })
      upstream.write(bytes)
    })
    upstream.on('data', (bytes) => {
      steps.push({ to: 'client', text: bytes })
      client.write(bytes)
    })
    client.on('close', () => upstream.destroy()).on('error', () => undefined)
    upstream.on('close', () => client.destroy()).on('error', () => undefined)
  }).listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  const session = connectHttp2(`http://127.0.0.1:${(proxy.address() as AddressInfo).port}`)
  const call = async (number: number) => {
    const stream = session.request(
      {
        ...{ ':method': number % 2 === 0 ? 'POST' : 'GET', ':path': `/${number}?q=${number}` },
        ...{ authorization: `Bearer ${number}`, 'x-agent': 'the same' },
      },
      { paddingStrategy: constants.PADDING_STRATEGY_NONE } as object,
    )
    stream.end(number % 2 === 0 ? Buffer.alloc(number * 10, 'q') : undefined)
    await once(stream.resume(), 'close')
  }
  // Some one after the other, the others at once.
  for (let number = 0; number < CALLS / 2; number += 1) await call(number)
  await Promise.all(Array.from({ length: CALLS / 2 }, (_, more) => call(CALLS / 2 + more)))
  session.close()
  proxy.close()
  server.close()
  return steps
}

const STEPS = await recorded()
const EXPECTED = Array.from({ length: CALLS }, (_, number) => {
  const asked = number % 2 === 0 ? number * 10 : 0
  const line = `${number % 2 === 0 ? 'POST' : 'GET'} /${number}?q=${number} h2 ${number % 5 === 0 ? 404 : 200}`
  return `${line} ${asked}/${number * 100 + asked}`
}).sort()

function run(steps: readonly Step[], connection = new Connection()): Connection {
  for (const step of steps) connection.step(step)
  return connection.close()
}

/** No call may have the answer of another: both carry its number. */
function assertUnmixed({ recorder }: Connection): void {
  assert.equal(recorder.going.size, 0)
  for (const { line, status, fields } of recorder.ended) {
    const answered = fields.find((field) => field.startsWith('< x-number: '))
    const asked = /^\S* \/(\d+)/.exec(line)?.[1]
    if (status === 0 || answered === undefined || asked === undefined) continue
    assert.equal(answered, `< x-number: ${asked}`)
    const bearer = fields.find((field) => field.startsWith('authorization: '))
    if (bearer) assert.equal(bearer, `authorization: Bearer ${asked}`)
  }
}

test('calls of a real client and server are told whole, however the bytes are cut into reads', () => {
  for (const connection of [run(STEPS), run(STEPS, new Connection(undefined)), run(STEPS.flatMap(bytewise))]) {
    assert.deepEqual([...connection.lines].sort(), EXPECTED)
    assertUnmixed(connection)
    assert.deepEqual(connection.recorder.losses, [])
    const third = connection.recorder.ended.find(({ line }) => line.startsWith('GET /3?'))
    assert.deepEqual(third?.trailers, ['grpc-status: 7'])
    assert.equal(third?.answer, 'a'.repeat(300))
    const sixth = connection.recorder.ended.find(({ line }) => line.startsWith('POST /6?'))
    assert.equal(sixth?.question, 'q'.repeat(60))
    assert.ok(sixth?.fields.includes('authorization: Bearer 6'))
  }
})

test('a connection that is joined late tells what it can know, and nothing wrong', () => {
  let told = 0
  for (let from = 1; from < STEPS.length; from += 1) {
    for (const asks of ['received', undefined] as const) {
      const connection = run(STEPS.slice(from), new Connection(asks))
      assertUnmixed(connection)
      for (const { line, status } of connection.recorder.ended) {
        assert.match(line, /^(GET|POST|) (\/\d+\?q=\d+|) h2$/)
        if (status > 0) told += 1
      }
    }
  }
  assert.ok(told > STEPS.length * 4, `${told} calls told of ${STEPS.length} late beginnings`)
})

test('content that is not seen is counted to the byte, and costs nothing else', () => {
  // A frame's header and some of its content are seen.
  const large = STEPS.map((step) => (step.text.length > 400 && isContent(step) ? { ...step, seen: 60 } : step))
  const connection = run(large)
  assertUnmixed(connection)
  assert.ok(connection.lines.some((line) => line.endsWith(' partial')))
  const sizes = connection.lines.map((line) => line.replace(' partial', '')).filter((line) => EXPECTED.includes(line))
  assert.ok(sizes.length > CALLS / 2, `${sizes.length} of ${CALLS}`)
})

test('whatever is missing, no call has the answer or the fields of another', () => {
  const losses = fc.array(fc.constantFrom('seen', 'seen', 'seen', 'cut', 'gone'), { minLength: 1, maxLength: 40 })
  const sizes = fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 1, maxLength: 5 })
  let told = 0
  fc.assert(
    fc.property(losses, sizes, fc.nat({ max: 20 }), fc.boolean(), (fates, reads, from, knowsWhoAsks) => {
      const connection = new Connection(knowsWhoAsks ? 'received' : undefined)
      const skipped = { server: 0, client: 0 }
      for (const [index, step] of STEPS.slice(from)
        .flatMap((whole) => cut(whole, reads))
        .entries()) {
        const fate = fates[index % fates.length]
        if (fate === 'gone') {
          skipped[step.to] += step.text.length
          continue
        }
        const seen = fate === 'cut' ? Math.ceil(step.text.length / 2) : step.text.length
        connection.step({ ...step, seen, skipped: skipped[step.to] })
        skipped[step.to] = 0
      }
      connection.close()
      assertUnmixed(connection)
      told += connection.recorder.ended.filter(({ status }) => status > 0).length
    }),
    { numRuns: Math.ceil(FUZZ_RUNS / 10) },
  )
  assert.ok(told > 0)
})

test('whatever comes, nothing is thrown, each question ends once, and streams are bounded', () => {
  const frame = fc
    .record({
      type: fc.nat({ max: 10 }),
      flags: fc.nat({ max: 255 }),
      stream: fc.constantFrom(0, 1, 1, 3, 5, 2 ** 31),
      payload: fc.oneof(
        fc.uint8Array({ maxLength: 30 }),
        fc.constant(
          encodeFields([
            [':method', 'GET'],
            [':path', '/'],
          ]),
        ),
        fc.constant(
          encodeFields([
            [':status', '200'],
            ['a', 'b'.repeat(9000)],
          ]),
        ),
      ),
      claimed: fc.oneof(
        { weight: 5, arbitrary: fc.constant(0) },
        { weight: 1, arbitrary: fc.integer({ min: -5, max: 70_000 }) },
      ),
    })
    .map(({ type, flags, stream, payload, claimed }) => {
      const header = Buffer.alloc(9)
      header.writeUIntBE(Math.max(0, payload.length + claimed), 0, 3)
      header.writeUInt8(type, 3)
      header.writeUInt8(flags, 4)
      header.writeUInt32BE(stream, 5)
      return Buffer.concat([header, payload])
    })
  const step = fc.record({
    to: fc.constantFrom('server' as const, 'client' as const),
    frames: fc.array(frame, { minLength: 1, maxLength: 4 }),
    unseen: fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat({ max: 60 }) }),
    skipped: fc.oneof({ weight: 5, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat({ max: 99 }) }),
  })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 20 }), fc.boolean(), (steps, prefaced) => {
      const connection = new Connection()
      if (prefaced) connection.asks(CLIENT_PREFACE)
      for (const { to, frames, unseen, skipped } of steps) {
        const text = Buffer.concat(frames)
        connection.step({ to, text, seen: Math.max(0, text.length - unseen), skipped })
      }
      connection.close()
      assert.equal(connection.recorder.going.size, 0)
    }),
    { numRuns: FUZZ_RUNS },
  )
  const many = new Connection().asks(CLIENT_PREFACE)
  const block = encodeFields([
    [':method', 'GET'],
    [':path', '/'],
  ])
  for (let stream = 1; stream < 20_000; stream += 2) {
    const header = Buffer.from([0, 0, block.length, 1, 5, 0, 0, stream >> 8, stream & 255])
    many.asks(Buffer.concat([header, block]))
  }
  assert.equal(many.observer.waiting, 1024)
  assert.ok(many.recorder.losses.includes('overflow'))
})

function isContent({ text }: Step): boolean {
  return Buffer.from(text)[3] === 0
}

function bytewise(step: Step): Step[] {
  // The preface must come whole: so does every client send it.
  return step === STEPS[0] ? [step] : cut(step, [1])
}

function cut({ to, text }: Step, sizes: readonly number[]): Step[] {
  const bytes = Buffer.from(text as Uint8Array)
  const parts: Step[] = []
  let at = 0
  for (let index = 0; at < bytes.length; index += 1) {
    const size = sizes[index % sizes.length] ?? 1
    parts.push({ to, text: bytes.subarray(at, at + size) })
    at += size
  }
  return parts
}

test('of a header block without an end little is kept, in whatever frames it comes, and what follows it is read', () => {
  const frame = (type: number, flags: number, streamId: number, payload: Uint8Array) =>
    Buffer.concat([Buffer.of(0, payload.length >> 8, payload.length & 255, type, flags, 0, 0, 0, streamId), payload])
  for (const bytes of [0, 1, 4096]) {
    const connection = new Connection()
    connection.asks(CLIENT_PREFACE).asks(frame(1, 0, 1, encodeFields([[':method', 'GET']])))
    for (let number = 0; number < 2000; number += 1) connection.asks(frame(9, 0, 1, Buffer.alloc(bytes, 0x82)))
    const held = connection.observer.heldBytes
    assert(held <= 80 * 1024, `${held} bytes are kept of frames with ${bytes}`)
    const question = encodeFields([
      [':method', 'GET'],
      [':path', '/next'],
    ])
    connection.asks(frame(9, 4, 1, Buffer.alloc(1, 0x82))).asks(frame(1, 5, 3, question))
    connection
      .answers(frame(4, 0, 0, Buffer.alloc(0)))
      .answers(frame(1, 5, 3, encodeFields([[':status', '204']])))
      .close()
    assert(connection.lines.includes('GET /next h2 204 0/0'), connection.lines.join(', '))
  }
})
