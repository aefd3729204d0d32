import assert from 'node:assert/strict'
import { Readable } from 'node:stream'
import { after, before, test } from 'node:test'
import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { bucketContract } from '@tollward/contracts'
import { SensorStateSchema } from '@tollward/contracts/sensor'
import { requires } from '@tollward/testkit'
import { runCommand } from '../program.ts'
import { startTestStack, type TestStack } from '../test-stack.ts'

const skip = await requires({ tools: ['nats-server'] })
let stack: TestStack

before(async () => {
  if (skip === false) stack = await startTestStack()
})
after(async () => {
  await stack?.[Symbol.asyncDispose]()
})

async function tollward(...argv: string[]) {
  const run = { code: -1, out: '', err: '' }
  run.code = await runCommand(argv, {
    out: (text) => {
      run.out += text
    },
    err: (text) => {
      run.err += text
    },
    stdin: Readable.from(['']),
    operatorFile: stack.operatorFile,
    signal: new AbortController().signal,
  })
  return run
}

const report = async (node: string, ageMs: number, state: MessageInitShape<typeof SensorStateSchema>) => {
  const reportedAt = timestampFromMs(Date.now() - ageMs)
  const value = create(SensorStateSchema, { format: 1, node, mode: 'enforce', reportedAt, ...state })
  const key = Buffer.from(node).toString('base64url')
  await stack.bus.bucket(bucketContract(SensorStateSchema)).put(key, value, { expiresAtMs: Date.now() + 60_000 })
}

test('sensors are shown with what is wrong with each, and one that says nothing any more as silent', {
  skip,
}, async () => {
  assert.equal((await tollward('sensors')).out, 'no sensor has said anything within the last hour\n')
  const interfaces = [{ name: 'eth0', index: 2, ingress: 'native', egress: '', fault: 'egress: EBUSY' }]
  await report('a', 0, { interfaces: [{ name: 'eth0', index: 2, ingress: 'native', egress: 'tcx' }] })
  await report('b', 0, { interfaces, faults: ['kernel: egress on eth0: EBUSY\u001b[2J'] })
  await report('c', 60_000, { interfaces, faults: ['kernel: egress on eth0: EBUSY'] })
  const rows = JSON.parse((await tollward('sensors', '-o', 'json')).out)
  assert.deepEqual(
    rows.map(({ node, state }: { node: string; state: string }) => [node, state]),
    [
      ['a', 'up'],
      ['b', 'faulty'],
      ['c', 'silent'],
    ],
  )
  const { out } = await tollward('sensors')
  assert.match(out, /^NODE {2}STATE {3}MODE /)
  assert.match(out, /\nb +faulty +enforce +eth0 \(native in, no out\) .* kernel: egress on eth0: EBUSY \[2J\n/)
})

test('one sensor is shown whole: what hangs where, what it costs, what rules met, what was lost', {
  skip,
}, async () => {
  await report('node.one', 0, {
    ...{ kernel: '6.18', interfaces: [{ name: 'eth0', index: 2, ingress: 'native', egress: 'tcx' }] },
    programs: [
      { name: 'xdp_guard', type: 'xdp', runs: 1000n, runNanos: 61_400n, bytes: 8192n },
      { name: 'watch_handshake', type: 'tracing', bytes: 4096n },
    ],
    maps: [
      { name: 'block_exact', entries: 0n, capacity: 131_072n, bytes: 5_000_000n },
      { name: 'flows_a', capacity: 65_536n, bytes: 9_000_000n },
    ],
    capabilities: [{ name: 'tcx', on: false, why: 'Linux 6.6 has it; clsact is used' }],
    rules: [{ name: 'no-telnet', action: 'rate-limit', mode: 'enforce', packets: 7n, dropped: 6n }],
    ...{ counters: [{ name: 'dropped_rule', value: 6n }, { name: 'passed' }], losses: [{ name: 'flows', value: 3n }] },
    captureTargets: [{ path: '/usr/lib/libssl.so.3', kind: 'openssl' }],
    kernelDrops: [{ name: 'NO_SOCKET', value: 4n }],
  })
  const { code, out } = await tollward('sensors', 'show', 'node.one')
  assert.equal(code, 0)
  for (const line of [
    /^state +up$/m,
    /^eth0 +2 +native +tcx +-$/m,
    /^xdp_guard +xdp +61 +1000 +8192$/m,
    /^watch_handshake +tracing +- +0 +4096$/m,
    /^block_exact +0 +131072 +5000000$/m,
    /^flows_a +- +65536 +9000000$/m,
    /^tcx +off +Linux 6\.6 has it; clsact is used$/m,
    /^no-telnet +rate-limit +enforce +7 +6 +0 +- +-$/m,
    /^\/usr\/lib\/libssl\.so\.3 +openssl +-$/m,
    /^dropped_rule +6$/m,
    /^NO_SOCKET +4$/m,
    /^flows +3$/m,
  ])
    assert.match(out, line)
  assert.doesNotMatch(out, /^passed/m)
  const detail = JSON.parse((await tollward('sensors', 'show', 'node.one', '-o', 'json')).out)
  assert.deepEqual(detail.counters, { dropped_rule: 6, passed: 0 })
  assert.deepEqual(detail.programs[0], {
    ...{ name: 'xdp_guard', type: 'xdp', averageNanos: 61, runsMeasured: 1000, bytes: 8192 },
  })
  const missing = await tollward('sensors', 'show', 'nobody')
  assert.deepEqual([missing.code, missing.out], [1, ''])
  assert.match(missing.err, /^tollward: No sensor of a node nobody has said anything within the last hour\.\n$/)
})
