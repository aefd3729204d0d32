import assert from 'node:assert/strict'
import type { Conversation, Piece } from '@tollward/testkit/fuzz'
import type { ExchangeEnd, ExchangeHandler, LossReason } from './exchange.ts'
import { CLIENT_PREFACE, FrameFlag, FrameReader, FrameType, writeFrameHeader } from './frames.ts'
import { encodeFields, type Field, HpackDecoder } from './hpack.ts'
import { HttpObserver } from './http.ts'

/** Words of HTTP/1 and HTTP/2, and frames of each kind. */
export const DICTIONARY: readonly (string | Uint8Array)[] = [
  ...['GET /a HTTP/1.1\r\n', 'HEAD / HTTP/1.1\r\n\r\n', 'POST /b?q=1 HTTP/1.0\r\n', 'CONNECT a:1 HTTP/1.1\r\n\r\n'],
  ...['HTTP/1.1 200 OK\r\n', 'HTTP/1.1 100 Continue\r\n\r\n', 'HTTP/1.1 101 S\r\n\r\n', 'HTTP/1.1 204 No\r\n\r\n'],
  ...[
    'Content-Length: 5\r\n',
    'Transfer-Encoding: chunked\r\n\r\n',
    'transfer-encoding: gzip\r\n',
    ' folded\r\n',
    '\t',
  ],
  ...['\r\n', '\r\n\r\n', '0\r\n\r\n', '5\r\nhello\r\n', 'a;x=y\r\n', 'Host: a\r\n', ':', ' ', ','],
  CLIENT_PREFACE,
  Buffer.of(0x82),
  Buffer.of(0x88),
  Buffer.of(0x20),
  Buffer.of(0x3f, 0xe1, 0x1f),
  Buffer.of(0x40, 1, 97, 1, 98),
  Buffer.of(0xbe),
  Buffer.of(0xff, 0xff, 0xff, 0xff, 0x0f),
  ...Object.values(FrameType).flatMap((type) => [
    frame(type, 0, 1, Buffer.alloc(4)),
    frame(type, FrameFlag.endHeaders | FrameFlag.endStream, 1, Buffer.of(0x82)),
    frame(type, FrameFlag.padded | FrameFlag.priority, 3, Buffer.alloc(8, 2)),
    frame(type, 0, 0, Buffer.alloc(type === FrameType.settings ? 6 : 8)),
  ]),
]

/** A frame with any payload. */
export function frame(type: number, flags: number, streamId: number, payload: Uint8Array): Buffer {
  const bytes = Buffer.alloc(9 + payload.length)
  writeFrameHeader(bytes, 0, { length: payload.length, type, flags, streamId })
  bytes.set(payload, 9)
  return bytes
}

/** One call, as an observer told it. */
interface Told {
  readonly line: string
  status: number
  readonly asked: string[]
  readonly answered: string[]
  end: ExchangeEnd | undefined
}

/** Hears an observer, and throws where it says what no observer may. */
class Witness implements ExchangeHandler<Told> {
  readonly told: Told[] = []
  readonly losses: LossReason[] = []
  /** Who speaks. */
  lane = 0
  /** An answer was seen before its question: how long it is, is then a guess. */
  #hasEarly = false

  request: ExchangeHandler<Told>['request'] = ({ protocol, method, target, authority, fields }) => {
    const line = [protocol, method, target, authority, JSON.stringify(fields)].join(' ')
    const told: Told = { line, status: -1, asked: [], answered: [], end: undefined }
    this.told.push(told)
    return told
  }

  requestContent = (told: Told, bytes: Uint8Array): void => {
    assert(!told.end, 'more of a question that is over')
    told.asked.push(Buffer.from(bytes).toString('latin1'))
  }

  response: ExchangeHandler<Told>['response'] = (told, { status, fields }) => {
    assert(!told.end, 'an answer after the end')
    assert.equal(told.status, -1, 'two answers for one question')
    told.status = status
    if (this.lane % 2 === 0) this.#hasEarly = true
    told.answered.push(`${JSON.stringify(fields)}\n`)
  }

  responseContent = (told: Told, bytes: Uint8Array): void => {
    assert(!told.end, 'more of an answer that is over')
    told.answered.push(Buffer.from(bytes).toString('latin1'))
  }

  trailers = (told: Told, fields: readonly Field[]): void => {
    assert(!told.end, 'trailers of an answer that is over')
    told.answered.push(JSON.stringify(fields))
  }

  end = (told: Told, end: ExchangeEnd): void => {
    assert(!told.end, 'ended twice')
    assert(Number.isSafeInteger(end.requestBytes) && Number.isSafeInteger(end.responseBytes), 'sizes are numbers')
    assert(end.requestBytes >= lengthOf(told.asked), 'more was told of the question than it had')
    told.end = end
  }

  lost = (reason: LossReason): void => void this.losses.push(reason)

  /** Calls that were seen whole; times and order aside. */
  get calls(): string[] {
    return this.told
      .map(({ line, status, asked, answered, end }) =>
        [line, status, asked.join(''), answered.join(''), end?.requestBytes, end?.responseBytes, end?.partial].join(
          '\n',
        ),
      )
      .sort()
  }

  get isWhole(): boolean {
    return (
      !this.#hasEarly &&
      this.losses.length === 0 &&
      this.told.every(({ end, status }) => end?.partial === false && status > 0)
    )
  }
}

/** Of one connection, whatever is said on it: two tables, two header blocks, and two heads of HTTP/1. */
const HELD_BYTES_MAX = 600 * 1024
const WAITING_MAX = 1024
/** As much of the same is said again where it is kept. */
const REPEATED_BYTES = 2 * 1024 * 1024
const READ_BYTES = 16 * 1024
/** What a connection's beginning shows is looked for at the beginning of a read. */
const BEGINNING_BYTES = 32

/** Lanes: 0 and 1 with questions on 0, where that is known; 2 and 3 where it is not. */
export const OBSERVED_LANES = 4

/** Whatever is observed: nothing is thrown or kept without bound, nothing is told twice, and how it was cut changes nothing. */
export function observe(conversation: Conversation): void {
  const { witness, observer, atNs } = heard(conversation)
  const last = conversation.at(-1)
  if (last) assertBounded(observer, last, atNs)
  observer.close(atNs)
  assert.equal(observer.waiting, 0, 'nothing waits after the end')
  assert(
    witness.told.every(({ end }) => end),
    'each call has an end',
  )
  assertCutAlike(conversation)
}

function heard(conversation: Conversation) {
  const witness = new Witness()
  const observer = new HttpObserver(witness, (conversation[0]?.lane ?? 0) < 2 ? 'received' : undefined)
  let atNs = 0n
  for (const piece of conversation) {
    atNs += 1n
    witness.lane = piece.lane
    push(observer, piece, atNs)
    assert(observer.waiting <= WAITING_MAX, 'more waits than may')
  }
  return { witness, observer, atNs }
}

/** What is lent is overwritten afterwards. */
function push(observer: HttpObserver<Told>, { lane, bytes, skipped, unseen }: Piece, atNs: bigint): void {
  const lent = Buffer.from(bytes)
  const direction = lane % 2 === 0 ? 'received' : 'sent'
  observer.push(direction, { bytes: lent, skipped, total: lent.length + unseen, atNs })
  lent.fill(0)
}

function assertBounded(observer: HttpObserver<Told>, last: Piece, atNs: bigint): void {
  if (last.bytes.length === 0 || last.unseen > 0) return
  const bytes = Buffer.alloc(READ_BYTES, last.bytes)
  for (let said = 0; said < REPEATED_BYTES; said += bytes.length) {
    const before = observer.heldBytes
    push(observer, { ...last, skipped: 0, bytes }, atNs)
    assert(observer.heldBytes <= HELD_BYTES_MAX, `${observer.heldBytes} bytes are kept of one connection`)
    if (observer.heldBytes - before < bytes.length / 2) return
  }
}

/** What was told whole is told the same, however the same bytes were cut. */
function assertCutAlike(conversation: Conversation): void {
  if (conversation.some(({ skipped, unseen }) => skipped > 0 || unseen > 0) || !isFromBeginning(conversation)) return
  const whole = heard(conversation)
  whole.observer.close(whole.atNs)
  if (!whole.witness.isWhole || whole.witness.told.length === 0) return
  const cut = heard(cutSmall(conversation))
  cut.observer.close(cut.atNs)
  assert.deepEqual(cut.witness.losses, [])
  assert.deepEqual(cut.witness.calls, whole.witness.calls, 'cut otherwise, the same calls')
}

/** Whoever comes late looks for messages at the beginnings of reads, and so depends on where those are. */
function isFromBeginning(conversation: Conversation): boolean {
  const [asked, answered] = [0, 1].map((lane) => conversation.find((piece) => piece.lane % 2 === lane)?.bytes)
  if (conversation[0]?.lane !== 0 || !asked) return false
  if (asked.subarray(0, CLIENT_PREFACE.length).equals(CLIENT_PREFACE))
    return !answered || answered[3] === FrameType.settings
  return (
    /^[A-Z]{3,9} \S/.test(asked.toString('latin1')) && (!answered || answered.toString('latin1', 0, 7) === 'HTTP/1.')
  )
}

function cutSmall(conversation: Conversation): Conversation {
  const begun = new Set<number>()
  return conversation.flatMap((piece) => {
    const { bytes, lane } = piece
    // The beginning of a connection is in one read.
    const first = begun.has(lane % 2) ? 0 : BEGINNING_BYTES
    begun.add(lane % 2)
    const parts = first > 0 ? [bytes.subarray(0, first)] : []
    for (let at = first, size = 1; at < bytes.length; at += size, size = (size % 7) + 1)
      parts.push(bytes.subarray(at, at + size))
    return parts.map((part) => ({ ...piece, bytes: part }))
  })
}

/** One block: whoever came late reads what others read, and what is written of it says the same. */
export function readBlocks(conversation: Conversation): void {
  const early = new HpackDecoder({ listBytesMax: 16 * 1024 })
  const late = new HpackDecoder({ listBytesMax: 16 * 1024, isLate: true })
  for (const { bytes } of conversation) {
    const read = early.decode(bytes)
    assert(early.heldBytes <= 64 * 1024, `${early.heldBytes} bytes are kept of a table`)
    if (!read) return
    assert.deepEqual(late.decode(bytes), read, 'late or not, the same')
    const again = new HpackDecoder({ listBytesMax: Number.POSITIVE_INFINITY }).decode(encodeFields(read.fields))
    assert.deepEqual(again, { fields: read.fields, isTooLarge: false }, 'what is written is read again')
  }
}

/** Frames are the same, however they were cut, and less than one is kept. */
export function readFrames(conversation: Conversation): void {
  const all = Buffer.concat(conversation.map(({ bytes }) => bytes))
  const whole = framesOf([all])
  const cut = framesOf(conversation.map(({ bytes }) => bytes))
  assert.deepEqual(cut, whole, 'cut otherwise, the same frames')
}

const FRAME_BYTES_MAX = 512

function framesOf(chunks: readonly Buffer[]): string[] {
  const frames: string[] = []
  const reader = new FrameReader(FRAME_BYTES_MAX, (type, flags, streamId, payload) => {
    frames.push(`${type} ${flags} ${streamId} ${payload.toString('latin1')}`)
    return true
  })
  for (const chunk of chunks) {
    const end = reader.push(chunk)
    assert(reader.heldBytes < FRAME_BYTES_MAX + 9, 'less than a frame is kept')
    if (end) return [...frames, end]
  }
  return frames
}

function lengthOf(parts: readonly string[]): number {
  return parts.reduce((sum, { length }) => sum + length, 0)
}
