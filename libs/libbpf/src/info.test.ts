import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually } from '@tollward/testkit'
import { countRuns, mapBytes, programStats } from './info.ts'
import { testRun } from './object.ts'
import { ethernet } from './test-packets.ts'
import { loadSensor, needsKernel } from './test-sensor.ts'

const BPF_PROG_TYPE_XDP = 6
const RUNS = 1000

test('the kernel tells what a program costs while runs are counted, and what it and its maps take', {
  skip: needsKernel,
}, async () => {
  using sensor = await loadSensor()
  const program = sensor.object.program('xdp_guard')
  const frame = Buffer.concat([ethernet(0x88b5, Buffer.alloc(0)), Buffer.alloc(50)])
  const runsOf = (run: () => void) => {
    const before = programStats(program).runs
    run()
    return Number(programStats(program).runs - before)
  }
  {
    using _counting = countRuns()
    assert.equal(
      runsOf(() => testRun(program, frame, RUNS)),
      RUNS,
    )
  }
  // Whoever else counts, counts these runs as well; at last nobody does.
  await eventually(() => runsOf(() => testRun(program, frame, RUNS)) === 0, { what: 'runs are no longer counted' })
  const { type, runNs, bytes, missed } = programStats(program)
  assert.equal(type, BPF_PROG_TYPE_XDP)
  assert.ok(runNs > BigInt(RUNS) && runNs < BigInt(RUNS) * 1_000_000n, `${runNs}`)
  assert.ok(bytes >= 4096 && missed === 0n)
  const exact = sensor.object.map('block_exact')
  assert.ok(mapBytes(exact) >= exact.maxEntries * exact.valueBytes, `${mapBytes(exact)}`)
})
