import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { address } from '../test-flows.ts'
import type { Attempt } from './connections.ts'
import { PortScanDetector } from './port-scan.ts'

const settings = { ports: 100, withinSeconds: 10 }
const START_MS = Date.UTC(2026, 0, 1)

function attempts(ports: readonly number[], atMs: number, source = '192.0.2.1'): Attempt[] {
  const bytes = address(source)
  const common = { sourceKey: source, source: bytes, destination: bytes }
  return ports.map((destinationPort) => ({ ...common, destinationPort, atMs: START_MS + atMs }))
}

const range = (from: number, count: number) => Array.from({ length: count }, (_, index) => from + index)

test('a scan within the window is found, wherever it lies and in any order of ports, and its ports are about counted', () => {
  const ports = fc.uniqueArray(fc.integer({ min: 1, max: 65_535 }), { minLength: 120, maxLength: 300 })
  fc.assert(
    fc.property(ports, fc.integer(), fc.nat(30_000), (list, seed, offsetMs) => {
      const detector = new PortScanDetector(seed)
      const told = list.map((port, index) =>
        detector.observe(attempts([port], offsetMs + Math.floor((index * 9900) / list.length)), settings),
      )
      const last = told.at(-1)
      assert(last, 'not found')
      assert(Math.abs(last.ports - list.length) / list.length < 0.15, `${last.ports} of ${list.length}`)
    }),
    { numRuns: 100 },
  )
})

test('a source that tries few ports again and again is no scanner', () => {
  fc.assert(
    fc.property(
      fc.uniqueArray(fc.integer({ min: 1, max: 65_535 }), { minLength: 1, maxLength: 80 }),
      fc.integer(),
      (ports, seed) => {
        const detector = new PortScanDetector(seed)
        for (let round = 0; round < 50; round++) {
          assert.equal(detector.observe(attempts(ports, round * 500), settings), undefined)
        }
      },
    ),
    { numRuns: 50 },
  )
})

test('ports tried long ago do not count', () => {
  const detector = new PortScanDetector(7)
  for (let minute = 0; minute < 20; minute++) {
    assert.equal(detector.observe(attempts(range(1 + minute * 80, 80), minute * 60_000), settings), undefined)
  }
})

test('memory is bounded whatever sources come, and what was let go is counted', () => {
  const detector = new PortScanDetector(7, 100)
  for (let index = 0; index < 5000; index++)
    detector.observe(attempts([80], index, `2001:db8::${index.toString(16)}`), settings)
  assert.equal(detector.size, 100)
  assert.equal(detector.evictions, 4900)
})
