import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Output } from './output.ts'
import { CountedBuffers, SlowReader } from './test-reader.ts'

test('who does not read holds two buffers, however many small things are said, and gets all of them in order', async () => {
  const [reader, buffers] = [new SlowReader(), new CountedBuffers()]
  const output = new Output(reader, buffers)
  const said = Array.from({ length: 5000 }, (_, index) => `frame ${index}\n`)
  for (const text of said) {
    output.add(text.length, (to, at) => to.write(text, at, 'latin1'))
    output.flush()
  }
  assert.ok(buffers.most <= 2, `${buffers.most} buffers were held`)
  assert.ok(output.waitingBytes >= said.join('').length - 20)
  // What is still gathered then goes out behind what was.
  output.end()
  reader.readOn()
  await new Promise((finished) => reader.once('finish', finished))
  assert.equal(Buffer.concat(reader.got).toString('latin1'), said.join(''))
  assert.equal(buffers.held, 0)
})

test('nothing is written to who is gone, and no buffer stays', () => {
  const [reader, buffers] = [new SlowReader(), new CountedBuffers()]
  const output = new Output(reader, buffers)
  reader.destroy()
  output.add(3, (to, at) => to.write('abc', at, 'latin1'))
  output.flush()
  assert.deepEqual([reader.got, buffers.held], [[], 0])
})
