import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { FRAME_HEADER_BYTES, FrameFlag, FrameReader, INTEGER_31_MAX, unpadded, writeFrameHeader } from './frames.ts'

interface Frame {
  readonly type: number
  readonly flags: number
  readonly streamId: number
  readonly payload: Buffer
}

function write({ type, flags, streamId, payload }: Frame): Buffer {
  const head = Buffer.alloc(FRAME_HEADER_BYTES)
  writeFrameHeader(head, 0, { length: payload.length, type, flags, streamId })
  return Buffer.concat([head, payload])
}

const byte = fc.integer({ min: 0, max: 255 })
const frame: fc.Arbitrary<Frame> = fc.record(
  {
    type: byte,
    flags: byte,
    streamId: fc.integer({ min: 0, max: INTEGER_31_MAX }),
    payload: fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes)),
  },
  { noNullPrototype: true },
)

test('frames are read as they were written, in whatever parts they come', () => {
  fc.assert(
    fc.property(fc.array(frame), fc.array(fc.integer({ min: 1, max: 30 }), { minLength: 1 }), (frames, sizes) => {
      const read: Frame[] = []
      const reader = new FrameReader(40, (type, flags, streamId, payload) => {
        read.push({ type, flags, streamId, payload: Buffer.from(payload) })
        return true
      })
      const bytes = Buffer.concat(frames.map(write))
      for (let at = 0, part = 0; at < bytes.length; part++) {
        const size = sizes[part % sizes.length] ?? 1
        assert.equal(reader.push(Buffer.from(bytes.subarray(at, at + size))), undefined)
        at += size
      }
      assert.deepEqual(read, frames)
    }),
  )
})

test('a frame that is too large is not waited for, and reading ends where it is to end', () => {
  const large = { type: 0, flags: 0, streamId: 1, payload: Buffer.alloc(41) }
  const none = new FrameReader(40, () => assert.fail('it was read'))
  assert.equal(none.push(write(large).subarray(0, FRAME_HEADER_BYTES)), 'too-large')
  let read = 0
  const small = write({ ...large, payload: Buffer.alloc(1) })
  const once = new FrameReader(40, () => ++read < 2)
  assert.equal(once.push(Buffer.concat([small, small, small])), 'ended')
  assert.equal(read, 2)
})

test('the reserved bit of a stream’s id means nothing', () => {
  const bytes = write({ type: 0, flags: 0, streamId: 5, payload: Buffer.alloc(0) })
  bytes[5] = 0x80
  const ids: number[] = []
  new FrameReader(40, (_type, _flags, id) => ids.push(id) > 0).push(bytes)
  assert.deepEqual(ids, [5])
})

test('padding is left out, and more of it than there is payload is refused', () => {
  const payload = Buffer.from([2, 7, 8, 0, 0])
  assert.deepEqual(unpadded(FrameFlag.padded, payload), Buffer.from([7, 8]))
  assert.deepEqual(unpadded(0, payload), payload)
  assert.deepEqual(unpadded(FrameFlag.padded, Buffer.from([4, 0, 0, 0, 0])), Buffer.alloc(0))
  assert.equal(unpadded(FrameFlag.padded, Buffer.from([5, 0, 0, 0, 0])), undefined)
  assert.equal(unpadded(FrameFlag.padded, Buffer.alloc(0)), undefined)
})
