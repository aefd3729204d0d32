import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import process from 'node:process'
import { test } from 'node:test'

const LEARNT = 1_000_000
const READS = 20
const READ = 50_000
const MEBIBYTE = 2 ** 20

/** What a service does: it keeps what it learns, then reads much by the same code of which nothing stays. Says how much became old. */
const PROGRAM = `
import { getHeapSpaceStatistics } from 'node:v8'
import { keepNewObjectsYoung } from '${import.meta.resolve('./young-objects.ts')}'
keepNewObjectsYoung()
const oldBytes = () => getHeapSpaceStatistics().find(({ space_name }) => space_name === 'old_space').space_used_size
const read = (index) => ({ text: 'message ' + index, at: { index }, list: [index, index] })
const learnt = []
for (let index = 0; index < ${LEARNT}; index++) learnt.push(read(index))
let last
const readMany = () => {
  const before = oldBytes()
  for (let index = 0; index < ${READ}; index++) last = read(index)
  return Math.max(0, oldBytes() - before)
}
// What was learnt last is young until then.
for (let times = 0; times < ${READS}; times++) readMany()
let grewBytes = 0
for (let times = 0; times < ${READS}; times++) grewBytes += readMany()
console.log(JSON.stringify({ grewBytes, last, learnt: learnt.length }))
`

test('what a service reads and forgets does not fill the old heap, though much by the same code stayed', () => {
  // V8 remembers nothing of a young heap that can still grow.
  const youngHeap = ['--min-semi-space-size=16', '--max-semi-space-size=16']
  const said = execFileSync(process.execPath, [...youngHeap, '--input-type=module', '--eval', PROGRAM], {
    encoding: 'utf8',
  })
  const { grewBytes, learnt } = JSON.parse(said) as { grewBytes: number; learnt: number }
  assert.equal(learnt, LEARNT)
  // Without, some 180.
  assert.ok(grewBytes < 20 * MEBIBYTE, `${Math.round(grewBytes / MEBIBYTE)} MiB`)
})
