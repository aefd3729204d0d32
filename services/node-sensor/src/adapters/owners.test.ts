import assert from 'node:assert/strict'
import { mkdirSync, readFileSync, rmdirSync, statSync } from 'node:fs'
import { test } from 'node:test'
import { fromBinary } from '@bufbuild/protobuf'
import { OwnerSchema } from '@tollward/contracts/sensor'
import { CGROUP_OF_MEMORY_HIERARCHY, CONNECTION } from '@tollward/libbpf'
import { requires } from '@tollward/testkit'
import { Owners } from './owners.ts'

const ID = '0123456789abcdef'.repeat(4)
const mounts = readFileSync('/proc/self/mountinfo', 'utf8').split('\n')
const mountOf = (kind: RegExp) => mounts.find((line) => kind.test(line))?.split(' ')[4]
const HIERARCHIES = [
  { name: 'unified', mount: mountOf(/ - cgroup2 /), mark: 0n },
  { name: 'old memory', mount: mountOf(/ - cgroup .*[ ,]memory(,|$)/), mark: CGROUP_OF_MEMORY_HIERARCHY },
]
const needsRoot = await requires({ root: true })

for (const { name, mount, mark } of HIERARCHIES) {
  const skip = needsRoot || (mount === undefined && `the ${name} hierarchy of cgroups`)

  test(`a container is told by the number of its cgroup in the ${name} hierarchy, and remembered when it is gone`, {
    skip,
  }, () => {
    using owners = new Owners()
    const group = `tollward-test-${process.pid}/${ID}`
    const directory = `${mount}/${group}`
    mkdirSync(directory, { recursive: true })
    const cgroupId = statSync(directory, { bigint: true }).ino | mark
    try {
      assert.deepEqual(tell(owners, connectionOf({ cgroupId })), {
        ...{ processId: 4321, processName: 'nginx' },
        ...{ cgroup: `/${group}`, containerId: ID, podUid: '' },
      })
    } finally {
      rmdirSync(directory)
      rmdirSync(`${mount}/tollward-test-${process.pid}`)
    }
    assert.equal(tell(owners, connectionOf({ cgroupId, processId: 4322 })).containerId, ID)
    // Who comes too late learns no name, and is not told a wrong one.
    using late = new Owners()
    assert.equal(tell(late, connectionOf({ cgroupId })).cgroup, '')
  })
}

test('a process id that another process got, or that changed its name or group, is told anew; another round-trip time is not', {
  skip: needsRoot,
}, () => {
  using owners = new Owners()
  const first = connectionOf({})
  const encoded = owners.encoded(first, 0)
  assert.equal(owners.encoded(connectionOf({ rttUs: 99 }), 0), encoded, 'the same bytes, not made again')
  assert.equal(tell(owners, connectionOf({ processName: 'sh' })).processName, 'sh')
  assert.equal(tell(owners, first).processName, 'nginx')
  assert.notEqual(owners.encoded(connectionOf({ cgroupId: 1n << 40n }), 0), encoded)
})

function connectionOf({ processId = 4321, processName = 'nginx', cgroupId = 1n, rttUs = 0 }): Buffer {
  const bytes = Buffer.alloc(CONNECTION.bytes)
  bytes.writeBigUInt64LE(cgroupId, CONNECTION.cgroupId)
  bytes.writeUInt32LE(processId, CONNECTION.processId)
  bytes.writeUInt32LE(rttUs, CONNECTION.rttUs)
  bytes.write(processName, CONNECTION.processName)
  return bytes
}

function tell(owners: Owners, connection: Buffer) {
  const { $typeName: _name, ...owner } = fromBinary(OwnerSchema, owners.encoded(connection, 0))
  return owner
}
