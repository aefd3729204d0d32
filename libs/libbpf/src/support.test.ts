import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { mkdir, rm, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { temporaryDirectory } from '@tollward/testkit'
import { removePins } from './attach.ts'
import { bootNsToWallTimeMs, bootTimeNs, wallTimeToBootNs } from './clock.ts'
import { blockTarget } from './layout.ts'
import { hasBatches } from './map.ts'
import { BpfError } from './native.ts'
import { isPinMismatch, loadObject, objectContents } from './object.ts'
import { compile, mountBpffs, probeSupport } from './support.ts'
import { compileSensor, loadSensor, needsKernel } from './test-sensor.ts'

test('a machine that can load and compile lacks nothing', { skip: needsKernel }, async () => {
  assert.deepEqual(await probeSupport(), { missingToLoad: [], missingToCompile: [], hasKernelTypes: true })
})

test('wall time becomes boot time and back, and a moment before the boot is past, not never', {
  skip: needsKernel,
}, () => {
  const wallTimeMs = Date.now() + 3_600_000
  const bootNs = wallTimeToBootNs(wallTimeMs)
  const hour = 3_600_000_000_000n
  assert(bootNs - bootTimeNs() <= hour && bootNs - bootTimeNs() > hour - 1_000_000_000n)
  assert(Math.abs(bootNsToWallTimeMs(bootNs) - wallTimeMs) < 1000)
  assert.equal(wallTimeToBootNs(0), 1n)
})

test('a program that the kernel refuses is an error that holds the verifier’s words', {
  skip: needsKernel,
}, async () => {
  await using directory = await temporaryDirectory()
  const source = `#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("xdp") int endless(struct xdp_md *context) { return *(int *)(long)context->data; }
char LICENSE[] SEC("license") = "GPL";
`
  const makefile =
    'bad.o: bad.c\n\tclang -O2 -g -target bpf -isystem /usr/include/$(shell uname -m)-linux-gnu -c $< -o $@\n'
  await writeFile(join(directory.path, 'bad.c'), source)
  await writeFile(join(directory.path, 'Makefile'), makefile)
  const object = await compile(directory.path, 'bad.o')
  assert.throws(
    () => loadObject(object),
    (error) =>
      error instanceof BpfError && error.code === 'permission_denied' && /invalid access to packet/.test(error.log),
  )
})

test('source that does not compile is an error that holds the compiler’s words', { skip: needsKernel }, async () => {
  await using directory = await temporaryDirectory()
  await writeFile(
    join(directory.path, 'Makefile'),
    'bad.o:\n\techo "int main( {" | clang -target bpf -c -x c - -o $@\n',
  )
  await assert.rejects(compile(directory.path, 'bad.o'), { code: 'failed_precondition', message: /expected parameter/ })
})

test('an object that is not there, and names that are not in it, are errors that name them', {
  skip: needsKernel,
}, async () => {
  assert.throws(() => loadObject('/nowhere.o'), { code: 'not_found', message: /\/nowhere\.o/ })
  using sensor = await loadSensor()
  assert.throws(() => sensor.object.map('nothing'), { code: 'not_found', message: /nothing/ })
  assert.throws(() => sensor.object.program('nothing'), { code: 'not_found', message: /nothing/ })
})

test('a map refuses keys and values of another size, and says when it is full', { skip: needsKernel }, async () => {
  mountBpffs()
  using object = loadObject(await compileSensor(), { maps: { guarded: { maxEntries: 2 } } })
  const map = object.map('guarded')
  const value = Buffer.alloc(4)
  assert.throws(() => map.lookup(Buffer.alloc(15)), TypeError)
  assert.throws(() => map.update(Buffer.alloc(16), Buffer.alloc(5)), TypeError)
  const keys = [1, 2, 3].map((byte) => Buffer.alloc(16, byte))
  map.updateBatch(Buffer.concat(keys.slice(0, 2)), Buffer.concat([value, value]))
  assert.throws(() => map.update(Buffer.alloc(16, 3), value), { code: 'resource_exhausted' })
  assert.throws(() => map.update(Buffer.alloc(16, 1), value, 'create'), { code: 'already_exists' })
  for (const key of map.keys()) assert.equal(map.delete(key), true)
  assert.equal(map.delete(Buffer.alloc(16, 1)), false)
  assert.equal(map.lookup(Buffer.alloc(16, 1)), undefined)
})

test('a pinned map of another shape is never taken over, and said to be the reason', {
  skip: needsKernel,
}, async () => {
  mountBpffs()
  const directory = `/sys/fs/bpf/tollward-shape-${process.pid}`
  await mkdir(directory)
  const load = async (maxEntries: number) =>
    loadObject(await compileSensor(), { maps: { guarded: { maxEntries, pinPath: join(directory, 'guarded') } } })
  try {
    for (let time = 0; time < 2; time++) (await load(16)).close()
    await assert.rejects(load(32), isPinMismatch)
  } finally {
    assert.deepEqual(removePins(directory), { links: 0, programs: 0, maps: 1 })
  }
})

test('a program that is left out is not loaded, and says so when asked for', { skip: needsKernel }, async () => {
  const path = await compileSensor()
  const { programs, maps } = objectContents(path)
  assert.equal(programs.find(({ name }) => name === 'watch_handshake')?.section, 'tp_btf/inet_sock_set_state')
  assert(maps.includes('block_exact'))
  using object = loadObject(path, { withoutPrograms: ['watch_handshake'], maps: { flows_a: { maxEntries: 16 } } })
  assert(object.program('xdp_guard').fd > 0)
  assert.throws(() => object.program('watch_handshake'), /left out/)
})

test('many entries are set, read and removed in batches, in hash maps and in tries, also where some are gone', {
  skip: needsKernel,
}, async () => {
  using object = loadObject(await compileSensor(), { maps: { block_overflow: { maxEntries: 10_000 } } })
  const keyOf = (map: string, index: number) => {
    const address = Buffer.from('20010db8000000000000000000000000', 'hex')
    address.writeUInt32BE(256 * index, 4)
    return blockTarget({ address, prefixLength: map === 'block_overflow' ? 128 : 56 }).key
  }
  for (const name of ['block_overflow', 'block_cidr6'] as const) {
    const map = object.map(name)
    const keys = Array.from({ length: 9000 }, (_, index) => keyOf(name, index))
    map.updateBatch(Buffer.concat(keys), Buffer.alloc(keys.length * map.valueBytes, 1))
    assert.equal(hasBatches(map), true)
    const read = new Set<string>()
    for (const { count, keys: found } of map.entries())
      for (let index = 0; index < count; index++)
        read.add(found.toString('hex', index * map.keyBytes, (index + 1) * map.keyBytes))
    assert.deepEqual(read, new Set(keys.map((key) => key.toString('hex'))))
    const [first, middle] = [keys[0], keys[4500]]
    assert(first && middle && map.delete(first) && map.delete(middle))
    assert.equal(map.deleteBatch(Buffer.concat(keys)), 8998)
    assert.deepEqual([...map.keys()], [])
  }
})

test('what cannot be removed keeps nothing else from going, and is said', { skip: needsKernel }, async () => {
  mountBpffs()
  const directory = `/sys/fs/bpf/tollward-faults-${process.pid}`
  await mkdir(join(directory, 'inner'), { recursive: true })
  try {
    using object = loadObject(await compileSensor(), { maps: { flows_a: { maxEntries: 16 } } })
    for (const name of ['a', 'c', 'inner/a', 'z']) object.map('guarded').pin(join(directory, name))
    // Two of them, so that whatever the order, one comes before a pin.
    for (const name of ['b', 'y']) await symlink('/nowhere', join(directory, name))
    assert.throws(() => removePins(directory), /could not be emptied.*ENOENT/)
    assert.deepEqual(readdirSync(directory).sort(), ['b', 'y'])
  } finally {
    for (const name of ['b', 'y']) await rm(join(directory, name))
    removePins(directory)
  }
})
