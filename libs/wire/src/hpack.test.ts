import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect } from 'node:http2'
import { type AddressInfo, createServer } from 'node:net'
import { test } from 'node:test'
import fc from 'fast-check'
import { CLIENT_PREFACE, FRAME_HEADER_BYTES, FrameFlag, FrameReader, FrameType, writeFrameHeader } from './frames.ts'
import { encodeFields, type Field, HpackDecoder, NO_TABLE, UNKNOWN_FIELD } from './hpack.ts'

const LIST = { listBytesMax: 64 * 1024 }
const bytes = (hex: string) => Buffer.from(hex.replaceAll(' ', ''), 'hex')

test('requests and responses of RFC 7541, C.4 and C.6, are read as they were meant, with the table between them', () => {
  const requests = new HpackDecoder(LIST)
  const request = (scheme: string, path: string, ...more: Field[]): Field[] => [
    [':method', 'GET'],
    [':scheme', scheme],
    [':path', path],
    [':authority', 'www.example.com'],
    ...more,
  ]
  for (const [block, fields] of [
    ['8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff', request('http', '/')],
    ['8286 84be 5886 a8eb 1064 9cbf', request('http', '/', ['cache-control', 'no-cache'])],
    [
      '8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf',
      request('https', '/index.html', ['custom-key', 'custom-value']),
    ],
  ] as const) {
    assert.deepEqual(requests.decode(bytes(block)), { fields, isTooLarge: false })
  }

  const responses = new HpackDecoder({ ...LIST, tableBytesMax: 256 })
  const response = (status: string, second: string, ...more: Field[]): Field[] => [
    [':status', status],
    ['cache-control', 'private'],
    ['date', `Mon, 21 Oct 2013 20:13:${second} GMT`],
    ['location', 'https://www.example.com'],
    ...more,
  ]
  const cookie = 'foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1'
  for (const [block, fields] of [
    [
      '4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3',
      response('302', '21'),
    ],
    ['4883 640e ffc1 c0bf', response('307', '21')],
    [
      '88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07',
      response('200', '22', ['content-encoding', 'gzip'], ['set-cookie', cookie]),
    ],
  ] as const) {
    assert.deepEqual(responses.decode(bytes(block)), { fields, isTooLarge: false })
  }
})

test('whatever nghttp2 encodes is read as it was meant', async () => {
  const blocks: Buffer[] = []
  const server = createServer((socket) => {
    let preface = CLIENT_PREFACE.length
    const reader = new FrameReader(16_384, (type, flags, id, payload) => {
      if (type === FrameType.settings && !(flags & FrameFlag.ack)) socket.write(emptySettings())
      if (type === FrameType.headers)
        blocks[(id - 1) / 2] = Buffer.from(payload.subarray(flags & FrameFlag.priority ? 5 : 0))
      return true
    })
    socket.on('data', (chunk) => {
      const from = Math.min(preface, chunk.length)
      preface -= from
      assert.equal(reader.push(chunk.subarray(from)), undefined)
    })
    socket.on('error', () => {})
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const session = connect(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  session.on('error', () => {})
  const name = fc.stringMatching(/^x-[a-z0-9_-]{1,20}$/)
  const value = fc.stringMatching(/^([!-~]([ -~\x80-\xff]{0,300}[!-~])?)?$/)
  const heads = fc
    .sample(fc.array(fc.tuple(name, value), { maxLength: 12 }), 300)
    .map((fields) => Object.fromEntries(fields))
  try {
    await once(session, 'connect')
    for (const [index, head] of heads.entries()) {
      const stream = session.request({ ':path': `/${index % 7}`, ...head })
      stream.on('error', () => {})
      stream.end()
    }
    while (blocks.filter((block) => block).length < heads.length) await new Promise(setImmediate)
  } finally {
    session.destroy()
    server.close()
  }
  const decoder = new HpackDecoder(LIST)
  for (const [index, head] of heads.entries()) {
    const fields = decoder.decode(blocks[index] ?? Buffer.alloc(0))?.fields ?? []
    assert.equal(fields.find(([field]) => field === ':path')?.[1], `/${index % 7}`)
    const own = fields.filter(([field]) => field.startsWith('x-'))
    assert.deepEqual(Object.fromEntries(own), head)
  }
})

function emptySettings(): Buffer {
  const frame = Buffer.alloc(FRAME_HEADER_BYTES)
  writeFrameHeader(frame, 0, { length: 0, type: FrameType.settings })
  return frame
}

test('what no encoder may write is refused', () => {
  for (const [block, why] of [
    ['80', 'index 0'],
    ['be', 'an index beyond the table'],
    ['7e 00', 'a name beyond the table'],
    ['40', 'a name that is cut off'],
    ['40 01', 'a name whose octets are missing'],
    ['40 01 61', 'a value that is missing'],
    ['00 01 61 02 62', 'a value that is cut off'],
    ['ff 80 80 80 80 80 00', 'an integer of too many octets'],
    ['ff ff ff ff ff 7f', 'an integer that is too large'],
    ['ff', 'an integer that is cut off'],
    ['3f e2 1f', 'a table larger than allowed'],
    ['82 20', 'a size of the table that comes after a field'],
    ['00 01 61 84 ff ff ff ff', 'the end of the string in a string'],
    ['00 01 61 82 1f ff', 'padding of more than seven bits'],
    ['00 01 61 81 18', 'padding that is not of ones'],
  ] as const) {
    assert.equal(new HpackDecoder(LIST).decode(bytes(block)), undefined, why)
  }
  assert.deepEqual(new HpackDecoder(LIST).decode(bytes('00 01 61 81 1f'))?.fields, [['a', 'a']])
})

test('a block that is too large is read to its end: the table must be as the other side has it', () => {
  const decoder = new HpackDecoder({ listBytesMax: 100 })
  const first = Buffer.concat([encodeFields([['x', 'y'.repeat(200)]]), bytes('40 01 61 01 62')])
  assert.deepEqual(decoder.decode(first), { fields: [], isTooLarge: true })
  assert.deepEqual(decoder.decode(bytes('be')), { fields: [['a', 'b']], isTooLarge: false })
})

test('the table holds no more than it may: the oldest fields go, also one that is larger than all of it', () => {
  const decoder = new HpackDecoder({ ...LIST, tableBytesMax: 70 })
  decoder.decode(bytes('40 01 61 01 31 40 01 62 01 32'))
  assert.deepEqual(decoder.decode(bytes('be bf'))?.fields, [
    ['b', '2'],
    ['a', '1'],
  ])
  decoder.decode(bytes('40 01 63 01 33'))
  assert.equal(decoder.decode(bytes('c0')), undefined, 'the oldest is gone')
  assert.deepEqual(decoder.decode(bytes('bf'))?.fields, [['b', '2']])
  decoder.decode(Buffer.concat([bytes('40 01 64 46'), Buffer.alloc(70, 'x').subarray(0, 0), Buffer.alloc(70, 'x')]))
  assert.equal(decoder.decode(bytes('be')), undefined, 'nothing is left')
  decoder.decode(bytes('40 01 61 01 31'))
  decoder.decode(bytes('20'))
  assert.equal(decoder.decode(bytes('be')), undefined, 'it was emptied')
})

test('who came late reads what it can know, and no field for another', () => {
  const [seen, late] = [new HpackDecoder(LIST), new HpackDecoder({ ...LIST, isLate: true })]
  seen.decode(bytes('40 01 61 01 31 40 01 62 01 32'))
  const next = bytes('82 be bf 40 01 63 01 33 be')
  assert.deepEqual(
    seen.decode(next)?.fields.map(([name]) => name),
    [':method', 'b', 'a', 'c', 'c'],
  )
  assert.deepEqual(late.decode(next)?.fields, [
    [':method', 'GET'],
    UNKNOWN_FIELD,
    UNKNOWN_FIELD,
    ['c', '3'],
    ['c', '3'],
  ])
  assert.deepEqual(late.decode(bytes('bf'))?.fields, [UNKNOWN_FIELD])
})

test('what is encoded here is read as it was meant', () => {
  const text = fc.stringMatching(/^[\x20-\x7e\x80-\xff]{0,400}$/)
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.stringMatching(/^[a-z:-]{1,200}$/), text), { maxLength: 20 }), (fields) => {
      const block = Buffer.concat([NO_TABLE, encodeFields(fields)])
      assert.deepEqual(new HpackDecoder({ listBytesMax: 1e6 }).decode(block)?.fields, fields)
    }),
  )
  assert.deepEqual(encodeFields([[':status', '200']]), bytes('88'), 'by the index, where there is one')
})

test('no bytes make it throw, hang or hold much', () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 200 }), { maxLength: 10 }), fc.boolean(), (blocks, isLate) => {
      const decoder = new HpackDecoder({ listBytesMax: 1000, isLate })
      for (const block of blocks) {
        const read = decoder.decode(Buffer.from(block))
        if (!read) return
        const held = read.fields.reduce((sum, [name, value]) => sum + name.length + value.length, 0)
        assert.ok(held <= 1000)
      }
    }),
    { numRuns: 3000 },
  )
})
