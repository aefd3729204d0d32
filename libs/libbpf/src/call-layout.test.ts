import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { enumValues, structLayout } from './btf.ts'
import * as layout from './call-layout.ts'
import { compile } from './mod.ts'
import { needsKernel } from './test-sensor.ts'

const compileCalls = () => compile(join(import.meta.dirname, '../../../bpf'), 'build/calls.bpf.o')
const ENUMS = {
  call_direction: [layout.CALL_DIRECTION, 'CALL', { CALL_DIRECTIONS: 2 }],
  call_binding: [layout.CALL_BINDING, 'BINDING', {}],
  call_side: [layout.CALL_SIDE, 'SIDE', {}],
  call_source: [layout.CALL_SOURCE, 'SOURCE', {}],
  probe_kind: [layout.PROBE_KIND, 'PROBE', {}],
  call_counter: [layout.CALL_COUNTER, 'CALL', { CALL_COUNTER_SLOTS: 32 }],
} as const

test('every structure of calls has the same size and offsets in C and in TypeScript', {
  skip: needsKernel,
}, async () => {
  const object = await compileCalls()
  const structs = { call_config: layout.CALL_CONFIG, clear_ports: layout.CLEAR_PORTS, call_chunk: layout.CALL_CHUNK }
  for (const [name, { bytes, ...offsets }] of Object.entries(structs)) {
    const inC = structLayout(object, name)
    assert.equal(bytes, inC.bytes, `size of ${name}`)
    const inTypeScript = Object.fromEntries(Object.entries(offsets).map(([member, at]) => [snake(member), at]))
    const { zero: _padding, ...members } = inC.offsets
    assert.deepEqual(inTypeScript, members, `members of ${name}`)
  }
})

test('every number of calls means the same in C and in TypeScript', { skip: needsKernel }, async () => {
  const object = await compileCalls()
  for (const [name, [numbers, prefix, more]] of Object.entries(ENUMS)) {
    const inTypeScript = Object.entries(numbers).map(([member, number]) => [
      `${prefix}_${snake(member).toUpperCase()}`,
      number,
    ])
    assert.deepEqual({ ...Object.fromEntries(inTypeScript), ...more }, enumValues(object, name), name)
  }
})

test('settings that the programs could not obey are refused', () => {
  const settings = {
    enabled: true,
    cgroupBytesPerSecond: 0,
    cgroupBurstBytes: 0,
    sampleOneIn: 1,
    ownPid: 0,
    pidnsInum: 0,
  }
  assert.throws(() => layout.encodeCallConfig({ ...settings, payloadBytesMax: 16_385 }), RangeError)
  assert.throws(() => layout.encodeCallConfig({ ...settings, payloadBytesMax: 0 }), RangeError)
  for (const port of [0, 65_536, 1.5, -1]) assert.throws(() => layout.encodeClearPorts([port]), RangeError, `${port}`)
  const ports = layout.encodeClearPorts([80, 65_535])
  assert.deepEqual([ports[10], ports[8191], ports.filter((byte) => byte !== 0).length], [1, 128, 2])
})

function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
}
