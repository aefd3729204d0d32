import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { type GoBuild, goCallsProgram, requires, temporaryDirectory } from '@tollward/testkit'
import { ElfFile } from './elf.ts'
import { type GoFile, GoFunctions, goVersion } from './go-functions.ts'
import { goProbes } from './go-probes.ts'
import { tlsProbes } from './tls-probes.ts'

const skip = await requires({ tools: ['go', 'clang', 'nm'] })
const BUILDS: readonly GoBuild[] = ['plain', 'stripped', 'pie', 'debug', 'linkedByC', 'arm']
const READ = 'crypto/tls.(*Conn).Read'
const WRITE = 'crypto/tls.(*Conn).Write'
/** Instructions that the kernel emulates: push, jumps, calls. */
const CHEAP = [0x55, 0xeb, 0xe9, 0xe8, 0x0f, 0x75, 0x76]
const FUZZ_ROUNDS = 300

async function supported(build: GoBuild) {
  const elf = new ElfFile(await goCallsProgram(build))
  const probes = goProbes(elf)
  assert(probes && !('unsupported' in probes), `${build} is supported`)
  return { elf, probes, [Symbol.dispose]: () => elf.close() }
}

/** Of a cookie: what the probe is, and where the first argument is kept. */
const kindOf = (cookie: bigint) => Number(cookie & 0xffn)
const slotOf = (cookie: bigint) => Number((cookie >> 16n) & 0xffffn)

test('a Go program is probed at its writes, its reads and its ends, however it was built', { skip }, async () => {
  for (const build of BUILDS) {
    using program = await supported(build)
    const { source, atEntry, atReturn, dear } = program.probes
    const kinds = build === 'debug' ? [8, 10, 11] : [8, 9, 11]
    assert.deepEqual([source, atEntry.map(({ cookie }) => kindOf(cookie)), atReturn], ['go', kinds, []], build)
    if (build === 'arm') continue
    assert.deepEqual(dear, [], build)
    for (const { offset } of atEntry) assert(CHEAP.includes(program.elf.read(offset, 1)[0] ?? 0), `${build} ${offset}`)
  }
})

test('a read is probed at the call that copies what was deciphered, of the function that the symbols name', {
  skip,
}, async () => {
  for (const [build, callee] of [
    ['plain', 'runtime.memmove'],
    ['debug', 'bytes.(*Reader).Read'],
  ] as const) {
    using program = await supported(build)
    const symbols = program.elf.functions(new Set([callee, READ]))
    const [read, called] = [READ, callee].map((name) => symbols.get(name))
    const [, at] = program.probes.atEntry
    assert(read && called && at)
    assert(at.offset > read.offset && at.offset < read.offset + read.bytes)
    const call = program.elf.read(at.offset, 5)
    assert.deepEqual([call[0], at.offset + 5 + call.readInt32LE(1)], [0xe8, called.offset], build)
    assert(slotOf(at.cookie) > 0 && slotOf(at.cookie) % 8 === 0)
  }
})

test('on arm64 the call that copies is one of memmove, and the slot is where the first argument was put', {
  skip,
}, async () => {
  using program = await supported('arm')
  const found = GoFunctions.of(program.elf)?.find(['runtime.memmove', READ, WRITE])
  const [memmove, read, write] = ['runtime.memmove', READ, WRITE].map((name) => found?.get(name))
  const [atWrite, atRead] = program.probes.atEntry
  assert(memmove && read && write && atWrite && atRead)
  const word = program.elf.read(atRead.offset, 4).readUInt32LE()
  assert.equal(word >>> 26, 0x25, 'bl')
  assert.equal(atRead.offset + ((word << 6) >> 4), memmove.offset)
  const code = program.elf.read(read.offset, 64)
  const stored = Array.from({ length: 16 }, (_, index) => code.readUInt32LE(index * 4))
  assert(stored.includes((0xf90003e0 | ((slotOf(atRead.cookie) / 8) << 10)) >>> 0))
  const before = program.elf.read(atWrite.offset - 4, 4).readUInt32LE()
  assert.equal(before >>> 24, 0x54, 'behind the branch for a stack that is too small')
  assert(atWrite.offset > write.offset && atWrite.offset < write.offset + 64)
})

test('every function of a program is found by its own table where its symbols say that it is', { skip }, async () => {
  for (const build of ['plain', 'linkedByC'] as const) {
    const path = await goCallsProgram(build)
    using elf = new ElfFile(path)
    const listed = execFileSync('nm', [path], { encoding: 'utf8', maxBuffer: 64 * 1024 * 1024 })
    const names = [...listed.matchAll(/^[0-9a-f]+ [tT] (\S*\S\.\S+)$/gm)].map(([, name = '']) => name)
    const wanted = names.filter((_, index) => index % 20 === 0)
    const symbols = elf.functions(new Set(wanted))
    const found = GoFunctions.of(elf)?.find(wanted)
    assert(found && found.size > 100, `${found?.size} functions`)
    for (const [name, { offset }] of found) assert.equal(offset, symbols.get(name)?.offset, name)
  }
})

test('a program that does not keep its first argument, or says another Go, is not probed but told', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'program')
  const bytes = readFileSync(await goCallsProgram('stripped'))
  const change = (at: number, to: Buffer) => {
    const changed = Buffer.from(bytes)
    to.copy(changed, at)
    writeFileSync(path, changed)
    using elf = new ElfFile(path)
    return goProbes(elf)
  }
  using program = await supported('stripped')
  const [, read] = program.probes.atEntry
  assert(read)
  const keeps = Buffer.from([0x48, 0x89, 0x44, 0x24, slotOf(read.cookie)])
  const kept = bytes.lastIndexOf(keeps, read.offset)
  assert(read.offset - kept < 900, 'the first argument is kept early in the function')
  const spoilt = change(kept, Buffer.from('0f1f440000', 'hex'))
  assert(spoilt && 'unsupported' in spoilt)
  assert.match(spoilt.unsupported, /^made by go1\.\d+/)
  const info = bytes.indexOf('\xff Go buildinf:', 0, 'latin1')
  const old = change(info + 15, Buffer.from([0]))
  assert(old && 'unsupported' in old)
  assert.match(old.unsupported, /Go older than 1\.18/)
  const table = bytes.indexOf(Buffer.from('f1ffffff00000108', 'hex'))
  const start = table < 0 ? bytes.indexOf(Buffer.from('f0ffffff00000108', 'hex')) : table
  const later = change(start, Buffer.from([0xee]))
  assert(later && 'unsupported' in later, 'a table of a form that is not known')
})

test('what is not Go has no probes of Go, and Go none of OpenSSL', { skip }, async () => {
  using node = new ElfFile(process.execPath)
  assert.deepEqual([goVersion(node), goProbes(node)], [undefined, undefined])
  using program = new ElfFile(await goCallsProgram('plain'))
  assert.match(goVersion(program) ?? '', /^go1\.\d+/)
  assert.equal(tlsProbes(program), undefined)
})

test('whatever a table of functions says, nothing outside of the file is read and it ends', { skip }, async () => {
  using elf = new ElfFile(await goCallsProgram('stripped'))
  const section = elf.section('.gopclntab')
  const whole = section && elf.contents(section)
  assert(whole)
  const seed = Date.now() % 0x7fffffff
  const random = randomFrom(seed)
  const pick = (below: number) => Math.floor((random() / 0x1_0000_0000) * below)
  const words = [0n, 1n, 8n, 0x7fffffffn, 0xffffffffn, 0x7fffffffffffffffn, 0xffffffffffffffffn]
  let found = 0
  for (let round = 0; round < FUZZ_ROUNDS; round++) {
    const table = Buffer.from(whole.subarray(0, round % 5 === 0 ? pick(whole.length) : whole.length))
    const functionTable = table.length >= 72 ? Number(table.readBigUInt64LE(64)) : 0
    for (let change = pick(4); change > 0 && table.length > 128; change--) {
      const at = 8 + 8 * pick(8)
      table.writeBigUInt64LE(pick(2) ? (words[pick(words.length)] ?? 0n) : BigInt(pick(table.length * 2)), at)
    }
    for (let change = pick(2000); change > 0 && functionTable + 100_000 < table.length; change--)
      table.writeUInt32LE(random(), functionTable + 4 * pick(20_000))
    const file: GoFile = {
      machine: 'x86-64',
      section: (name) => (name === '.gopclntab' ? { address: 0, offset: 0, bytes: table.length } : elf.section(name)),
      contents: ({ offset, bytes }) => table.subarray(offset, offset + bytes),
      read: (offset, length) => elf.read(offset, length),
      fileOffset: (address) => elf.fileOffset(address),
    }
    const startedMs = performance.now()
    try {
      const functions = GoFunctions.of(file)
      found += functions?.find([READ, WRITE, 'runtime.memmove']).size ?? 0
      functions?.mentions(READ)
    } catch (error) {
      assert.fail(`seed ${seed}, round ${round}: ${error}`)
    }
    assert(performance.now() - startedMs < 5000, `seed ${seed}, round ${round}`)
  }
  assert(found > 0 && found < 3 * FUZZ_ROUNDS, `the changes leave some of everything: ${found}`)
})

function randomFrom(seed: number): () => number {
  let state = seed || 1
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return state >>> 0
  }
}
