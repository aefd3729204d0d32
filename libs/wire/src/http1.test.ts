import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { FIELD_BYTES_MAX, FIELDS_MAX } from './exchange.ts'
import { Connection, type Step } from './test-recorder.ts'

/** More of them in the long runs. */
const FUZZ_RUNS = Number(process.env.TOLLWARD_FUZZ_RUNS ?? 2000)

const get = (path: string, more = '') => `GET ${path} HTTP/1.1\r\nHost: api.example\r\n${more}\r\n`
const post = (path: string, body: string, more = '') =>
  `POST ${path} HTTP/1.1\r\nHost: api.example\r\nContent-Length: ${body.length}\r\n${more}\r\n${body}`
const ok = (body: string, more = '') => `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n${more}\r\n${body}`

/** Steps of a connection, and what is to be told of it. */
interface Case {
  readonly steps: readonly Step[]
  readonly told: readonly string[]
}

const server = (text: string): Step => ({ to: 'server', text })
const client = (text: string): Step => ({ to: 'client', text })
const CHUNKED = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Digest\r\n\r\n'

/** Each must be told the same however its bytes are cut into reads. */
const CASES: Readonly<Record<string, Case>> = {
  'questions and answers in turn': {
    steps: [server(get('/a')), client(ok('hello')), server(post('/b?q=1', 'xyz')), client(ok(''))],
    told: ['GET /a http/1.1 200 0/5', 'POST /b?q=1 http/1.1 200 3/0'],
  },
  'questions sent ahead': {
    steps: [server(get('/a') + get('/b') + post('/c', 'xyz')), client(ok('1') + ok('22')), client(ok('333'))],
    told: ['GET /a http/1.1 200 0/1', 'GET /b http/1.1 200 0/2', 'POST /c http/1.1 200 3/3'],
  },
  'answers without content, whatever their fields say': {
    steps: [
      server(get('/a').replace('GET', 'HEAD')),
      client('HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n'),
      server(get('/b')),
      client('HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n'),
      server(get('/c')),
      client('HTTP/1.1 204 No Content\r\n\r\n'),
      server(get('/d')),
      client(ok('d')),
    ],
    told: ['HEAD /a http/1.1 200 0/0', 'GET /b http/1.1 304 0/0', 'GET /c http/1.1 204 0/0', 'GET /d http/1.1 200 0/1'],
  },
  'interim answers': {
    steps: [
      server('POST /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n'),
      client('HTTP/1.1 100 Continue\r\n\r\n'),
      server('xyz'),
      client(`HTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\n\r\n${ok('done')}`),
    ],
    told: ['POST /a http/1.1 200 3/4'],
  },
  'chunked content with extensions and trailers': {
    steps: [
      server(
        'POST /a HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3;x="y"\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n',
      ),
      client(`${CHUNKED}5\r\nhello\r\n0\r\nDigest: abc\r\n\r\n`),
      server(get('/b')),
      client(ok('b')),
    ],
    told: ['POST /a http/1.1 200 13/5', 'GET /b http/1.1 200 0/1'],
  },
  'content that looks like messages': {
    steps: [
      server(post('/a', get('/evil'))),
      client(ok(ok('HTTP/1.1 500 No\r\n\r\n'))),
      server(get('/b')),
      client(ok('')),
    ],
    told: [
      `POST /a http/1.1 200 ${get('/evil').length}/${ok('HTTP/1.1 500 No\r\n\r\n').length}`,
      'GET /b http/1.1 200 0/0',
    ],
  },
  'Transfer-Encoding before Content-Length': {
    steps: [
      server('POST /a HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n'),
      client(ok('')),
      server(get('/b')),
      client(ok('')),
    ],
    told: ['POST /a http/1.1 200 1/0', 'GET /b http/1.1 200 0/0'],
  },
  'the same length twice, lines that end with LF alone, empty lines between': {
    steps: [
      server(`\r\nPOST /a HTTP/1.1\nContent-Length: 1\nContent-Length: 1\n\nx\r\n${get('/b')}`),
      client(`HTTP/1.1 200\nContent-Length: 1\n\ny${ok('z')}`),
    ],
    told: ['POST /a http/1.1 200 1/1', 'GET /b http/1.1 200 0/1'],
  },
  'a field that is folded': {
    steps: [
      server('POST /a HTTP/1.1\r\nTransfer-Encoding:\r\n chunked\r\nX-Note: a\r\n\tb\r\n\r\n1\r\na\r\n0\r\n\r\n'),
      client(ok('')),
    ],
    told: ['POST /a http/1.1 200 1/0'],
  },
  'an answer that the close ends': {
    steps: [server('GET /a HTTP/1.0\r\n\r\n'), client('HTTP/1.0 200 OK\r\n\r\nall of it')],
    told: ['GET /a http/1.0 200 0/9'],
  },
  'an answer that the close cuts off, and none at all': {
    steps: [server(get('/a') + get('/b')), client('HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf')],
    told: ['GET /a http/1.1 200 0/4 partial', 'GET /b http/1.1 0 0/0 partial'],
  },
  'a WebSocket after its upgrade': {
    steps: [
      server(get('/chat', 'Upgrade: websocket\r\nConnection: upgrade\r\n')),
      client('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n'),
      server(get('/not-http')),
      client(ok('not http')),
    ],
    told: ['GET /chat http/1.1 101 0/0'],
  },
  'a tunnel': {
    steps: [
      server('CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\n\r\n'),
      client('HTTP/1.1 200 Connection Established\r\n\r\n'),
      server(get('/inside')),
    ],
    told: ['CONNECT api.example:443 http/1.1 200 0/0'],
  },
}

function run(steps: readonly Step[]): Connection {
  const connection = new Connection()
  for (const step of steps) connection.step(step)
  return connection.close()
}

for (const [name, { steps, told }] of Object.entries(CASES)) {
  test(`${name}: told as they are, however the bytes are cut into reads`, () => {
    assert.deepEqual(run(steps).lines, told)
    assert.deepEqual(run(steps.flatMap(byteByByte)).lines, told)
    fc.assert(
      fc.property(fc.array(fc.nat({ max: 40 }), { minLength: 1, maxLength: 20 }), (sizes) => {
        assert.deepEqual(run(steps.flatMap((step) => cut(step, sizes))).lines, told)
      }),
      { numRuns: 50 },
    )
  })
}

test('content and fields are handed over, and the time from the first byte asked to the last answered', () => {
  const connection = run([
    server('POST /a HTTP/1.1\r\nHOST:  api.example \r\nno-colon\r\nBad Name: x\r\n'),
    server('Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n'),
    client(`${CHUNKED}5\r\nhello\r\n0\r\n`),
    client('Digest: abc\r\n\r\n'),
  ])
  const [seen] = connection.recorder.ended
  assert.equal(seen?.question, 'abcde')
  assert.equal(seen?.answer, 'hello')
  assert.equal(seen?.tookNs, 3_000_000n)
  assert.deepEqual(seen?.fields.slice(0, 2), ['host: api.example', 'transfer-encoding: chunked'])
  assert.deepEqual(seen?.trailers, ['digest: abc'])
})

test('the direction that asks is told by content where nobody knows it', () => {
  for (const first of ['asks', 'answers'] as const) {
    const connection = new Connection(undefined)
    if (first === 'answers') connection.answers(ok('of a question before'))
    connection.asks(get('/a')).answers(ok('x')).close()
    assert.deepEqual(connection.lines, ['GET /a http/1.1 200 0/1'])
  }
})

test('content of known length may be missing: what follows is paired as before, sizes are exact', () => {
  const large = 'x'.repeat(10_000)
  const chunked = `${CHUNKED}2710\r\n${large}\r\n`
  const connection = new Connection()
    .asks(post('/a', large), { seen: 4096 })
    .answers(ok(large), { seen: 4096 })
    .asks(get('/b'))
    .answers(chunked, { seen: 4096 })
    .answers(`2710\r\n${large}\r\n0\r\n\r\n`, { seen: 4096 })
    .asks(get('/c'))
    .answers(ok(large).slice(0, 4096))
    .answers('x'.repeat(16), { skipped: ok(large).length - 4096 - 16 })
    .asks(get('/d'))
    .answers(ok('d'))
    .close()
  assert.deepEqual(connection.lines, [
    'POST /a http/1.1 200 10000/10000 partial',
    'GET /b http/1.1 200 0/20000 partial',
    'GET /c http/1.1 200 0/10000 partial',
    'GET /d http/1.1 200 0/1',
  ])
  assert.deepEqual(connection.recorder.losses, [])
})

test('a last chunk that alone is missing has been there, as the head after it shows', () => {
  const chunked = `${CHUNKED}5\r\nhello\r\n`
  const connection = new Connection()
    .asks(get('/a'))
    .answers(chunked)
    .asks(get('/b'))
    .answers(chunked, { skipped: 5 })
    .asks(get('/c'))
    .answers('more of it\r\n', { skipped: 5 })
    .asks(get('/d'))
    .answers(ok('d'))
    .close()
  assert.deepEqual(connection.lines.slice(0, 1), ['GET /a http/1.1 200 0/5'])
  assert.equal(connection.recorder.ended[0]?.tookNs, 1_000_000n)
  assert.equal(connection.lines[1], 'GET /c http/1.1 0 0/0 partial')
  assert.equal(connection.lines.at(-1), 'GET /d http/1.1 200 0/1')
})

test('a head whose end is missing still pairs, and the next begins with its own read', () => {
  const cookies = `Cookie: ${'c'.repeat(6000)}\r\n`
  const connection = new Connection()
    .asks(get('/a', cookies), { seen: 4096 })
    .answers(ok('a'))
    .asks(post('/b', 'y'.repeat(50), cookies), { seen: 4096 })
    .asks('y'.repeat(100))
    .answers(ok('b', cookies.replace('Cookie', 'Set-Cookie')), { seen: 4096 })
    .asks(get('/c'))
    .answers(ok('c'))
    .close()
  assert.deepEqual(
    connection.lines.map((line) => line.split(' ').slice(0, 4).join(' ')),
    ['GET /a http/1.1 200', 'POST /b http/1.1 200', 'GET /c http/1.1 200'],
  )
  assert.equal(connection.lines.at(-1), 'GET /c http/1.1 200 0/1')
  assert.deepEqual(connection.recorder.losses, [])
})

test('after a missing answer no later answer is taken for it', () => {
  const connection = new Connection()
    .asks(get('/a'))
    // Its answer, and the whole of /b with its answer, are missing.
    .answers(ok('c'), { skipped: ok('a').length })
    .asks(get('/d'), { skipped: get('/b').length })
    .answers(ok('dd'))
    .close()
  assert.deepEqual(connection.lines, ['GET /a http/1.1 0 0/0 partial', 'GET /d http/1.1 200 0/2'])
  assert.ok(connection.recorder.losses.length > 0)
})

test('after a missing question its answer is taken for no other', () => {
  const connection = new Connection()
    .asks(get('/a'))
    .answers(ok('a'))
    .answers(ok('of /b, which is missing'))
    .asks(get('/c'), { skipped: get('/b').length })
    .answers(ok('ccc'))
    .close()
  assert.deepEqual(connection.lines, ['GET /a http/1.1 200 0/1', 'GET /c http/1.1 200 0/3'])
})

test('an answer that is told of before its question belongs to it', () => {
  const connection = new Connection()
    .asks(get('/a'))
    .answers(ok('a'))
    .answers(ok('bb'))
    .asks(get('/b'))
    .asks('HEAD /c HTTP/1.1\r\n\r\n')
    .answers('HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n')
    .answers('HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n')
    .asks('HEAD /d HTTP/1.1\r\n\r\n')
    .asks(get('/e'))
    .answers(ok('e'))
    .close()
  assert.deepEqual(connection.lines, [
    'GET /a http/1.1 200 0/1',
    'GET /b http/1.1 200 0/2 partial',
    'HEAD /c http/1.1 200 0/0',
    'HEAD /d http/1.1 200 0/0',
    'GET /e http/1.1 200 0/1',
  ])
})

test('when the first answer outran its question, the next answer is not given to it', () => {
  const connection = new Connection().answers(ok('a')).asks(get('/a')).asks(get('/b')).answers(ok('bb')).close()
  assert.deepEqual(connection.lines, ['GET /a http/1.1 0 0/0 partial', 'GET /b http/1.1 200 0/2'])
})

test('a message that nobody can delimit pairs with nothing', () => {
  for (const fields of [
    'Content-Length: 1\r\nContent-Length: 2\r\n',
    'Content-Length: +1\r\n',
    'Transfer-Encoding: gzip\r\n',
  ]) {
    const connection = new Connection()
      .asks(`POST /a HTTP/1.1\r\n${fields}\r\nx${get('/hidden')}`)
      .answers(ok('a'))
      .asks(get('/b'))
      .answers(ok('bb'))
      .close()
    assert.deepEqual(connection.lines, ['POST /a http/1.1 0 0/0 partial', 'GET /b http/1.1 200 0/2'], fields)
  }
})

test('more questions than are kept are told without answers, and counted', () => {
  const connection = new Connection()
  for (let sent = 0; sent < 200; sent += 1) connection.asks(get(`/${sent}`))
  assert.equal(connection.observer.waiting < 65, true)
  connection.close()
  assert.equal(connection.lines.length, 200)
  assert.ok(connection.recorder.losses.includes('overflow'))
})

test('endless heads and lines are kept in part', () => {
  const connection = new Connection().asks('GET /a HTTP/1.1\r\n')
  connection
    .asks(`X-Long: ${'v'.repeat(20_000)}`)
    .asks('v'.repeat(20_000))
    .asks('\r\n')
  for (let sent = 0; sent < 1000; sent += 1) connection.asks(`X-${sent}: ${'v'.repeat(100)}\r\n`)
  connection
    .asks(`X-Long: ${'v'.repeat(20_000)}`)
    .asks('v'.repeat(20_000))
    .asks('\r\n\r\n')
    .answers(ok('a'))
  const [seen] = connection.recorder.ended
  assert.equal(seen?.status, 200)
  assert.equal(seen?.fields.filter((field) => !field.startsWith('<')).length, FIELDS_MAX)
  assert.equal(seen?.fields[0]?.length, FIELD_BYTES_MAX)

  const endless = new Connection().asks('GET /a HTTP/1.1\r\n')
  for (let sent = 0; sent < 3000; sent += 1) endless.asks(`X-${sent}: ${'v'.repeat(100)}\r\n`)
  assert.deepEqual(endless.recorder.losses, ['malformed'])
})

test('whatever comes, nothing is thrown, and each question ends once', () => {
  const piece = fc.oneof(
    fc.constantFrom(...Object.values(CASES).flatMap(({ steps }) => steps.map(({ text }) => String(text)))),
    fc.constantFrom(
      'HTTP/1.1 ',
      'GET ',
      '0\r\n\r\n',
      '\r\n',
      'ffffffffffffffffff\r\n',
      ': \r\n',
      ' chunked\r\n',
      '100000\r\n',
    ),
    fc.string({ unit: 'binary-ascii', maxLength: 40 }),
  )
  const step = fc.record({
    to: fc.constantFrom('server' as const, 'client' as const),
    pieces: fc.array(piece, { minLength: 1, maxLength: 4 }),
    from: fc.nat({ max: 60 }),
    unseen: fc.oneof({ weight: 3, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat({ max: 200 }) }),
    skipped: fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat({ max: 5000 }) }),
  })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const connection = new Connection()
      for (const { to, pieces, from, unseen, skipped } of steps) {
        const text = pieces.join('').slice(from)
        connection.step({ to, text, seen: Math.max(0, text.length - unseen), skipped })
      }
      connection.close()
      assert.equal(connection.recorder.going.size, 0)
    }),
    { numRuns: FUZZ_RUNS },
  )
})

/** A question with its answer, which carries the question's number too. */
const exchange = fc.record({
  method: fc.constantFrom('GET', 'HEAD', 'POST'),
  asked: fc.constantFrom('length', 'chunked'),
  answered: fc.constantFrom('length', 'chunked', 'none'),
  askedBytes: fc.nat({ max: 300 }),
  answeredBytes: fc.nat({ max: 300 }),
  padding: fc.oneof({ weight: 3, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat({ max: 200 }) }),
  interim: fc.boolean(),
  /** Sizes of the reads and writes. */
  reads: fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 4 }),
  writes: fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 4 }),
})

type Exchange = typeof exchange extends fc.Arbitrary<infer T> ? T : never

function content(framing: 'length' | 'chunked', bytes: number): string {
  const body = 'GET / '.repeat(100).slice(0, bytes)
  if (framing === 'length') return `Content-Length: ${bytes}\r\n\r\n${body}`
  const half = Math.floor(bytes / 2)
  const chunks = [body.slice(0, half), body.slice(half)].filter((part) => part !== '')
  const chunked = chunks.map((part) => `${part.length.toString(16)}\r\n${part}\r\n`).join('')
  return `Transfer-Encoding: chunked\r\n\r\n${chunked}0\r\n\r\n`
}

/** The steps of an exchange: it is not sent ahead. */
function stepsOf(how: Exchange, number: number): Step[] {
  const pad = how.padding > 0 ? `Pad: ${'p'.repeat(how.padding)}\r\n` : ''
  const asked = how.method === 'POST' ? content(how.asked, how.askedBytes) : '\r\n'
  const question = `${how.method} /${number} HTTP/1.1\r\nHost: a\r\n${pad}${asked}`
  const status = how.answered === 'none' ? '204 No Content' : '200 OK'
  const framed = how.answered === 'none' ? '\r\n' : content(how.answered, how.answeredBytes)
  const answer = how.method === 'HEAD' ? `${framed.split('\r\n\r\n')[0]}\r\n\r\n` : framed
  const interim = how.interim ? 'HTTP/1.1 100 Continue\r\n\r\n' : ''
  return [
    ...cut({ to: 'server', text: question }, how.reads),
    ...cut(
      { to: 'client', text: `${interim}HTTP/1.1 ${status}\r\nX-Number: ${number}\r\n${pad}${answer}` },
      how.writes,
    ),
  ]
}

function numbers(connection: Connection): (readonly [asked: string, answered: string])[] {
  return connection.recorder.ended
    .filter(({ status }) => status > 0)
    .map(({ line, fields }) => [
      line.split(' ')[1] ?? '',
      fields.find((field) => field.startsWith('< x-number: ')) ?? '',
    ])
}

test('whatever is missing, no answer is given to a question that is not its own', () => {
  const losses = fc.array(fc.constantFrom('seen', 'seen', 'seen', 'cut', 'gone'), { minLength: 1, maxLength: 50 })
  fc.assert(
    fc.property(
      fc.array(exchange, { minLength: 2, maxLength: 8 }),
      losses,
      fc.nat({ max: 6 }),
      (exchanges, fates, from) => {
        const steps = exchanges.flatMap(stepsOf)
        const connection = new Connection()
        const skipped = { server: 0, client: 0 }
        for (const [index, step] of steps.entries()) {
          // What came before the programs did is not counted as missing.
          if (index < from) continue
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
        for (const [asked, answered] of numbers(connection)) {
          // The number of an answer whose head was cut may be missing, or cut.
          if (answered !== '') assert.equal(`/${answered.slice('< x-number: '.length)}`, asked)
        }
      },
    ),
    { numRuns: FUZZ_RUNS },
  )
})

test('when nothing is missing, every answer is given to its question, with its exact size', () => {
  fc.assert(
    fc.property(fc.array(exchange, { minLength: 1, maxLength: 8 }), (exchanges) => {
      const connection = run(exchanges.flatMap(stepsOf))
      assert.deepEqual(
        connection.recorder.ended.map(({ requestBytes, responseBytes, partial }) => [
          requestBytes,
          responseBytes,
          partial,
        ]),
        exchanges.map(({ method, answered, askedBytes, answeredBytes }) => [
          method === 'POST' ? askedBytes : 0,
          method === 'HEAD' || answered === 'none' ? 0 : answeredBytes,
          false,
        ]),
      )
      assert.ok(numbers(connection).every(([asked, answered]) => answered === `< x-number: ${asked.slice(1)}`))
    }),
    { numRuns: 500 },
  )
})

function byteByByte({ to, text }: Step): Step[] {
  return [...String(text)].map((byte) => ({ to, text: byte }))
}

function cut({ to, text }: Step, sizes: readonly number[]): Step[] {
  const parts: Step[] = []
  let at = 0
  for (let index = 0; at < text.length; index += 1) {
    const size = (sizes[index % sizes.length] ?? 0) + 1
    parts.push({ to, text: String(text).slice(at, at + size) })
    at += size
  }
  return parts
}
