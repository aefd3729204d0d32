import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { requires, temporaryDirectory } from '@tollward/testkit'
import { ElfFile } from './elf.ts'
import { tlsProbes } from './tls-probes.ts'

const needsTools = await requires({ tools: ['clang', 'nm', 'strip'] })

const SOURCE = `
int shared(void *ssl, void *buffer, unsigned long length, unsigned long *read) { *read = length; return buffer != ssl; }
int SSL_read(void *ssl, void *buffer, int length) { unsigned long read; return shared(ssl, buffer, length, &read) ? (int)read : 0; }
__attribute__((naked)) int SSL_write(void *ssl, const void *buffer, int length) { asm("mov $0x12345678, %eax; ret"); }
void SSL_free(void *ssl) {}
`

async function library(directory: string, flags: readonly string[] = []): Promise<string> {
  const source = join(directory, 'library.c')
  const path = join(directory, 'library.so')
  writeFileSync(source, SOURCE)
  execFileSync('clang', ['-shared', '-fPIC', '-O1', ...flags, '-o', path, source])
  return path
}

/** What nm says: in a library made by this linker, code is at another place in the file than in memory. */
function addressesOf(path: string, options: readonly string[]): Map<string, number> {
  const lines = execFileSync('nm', [...options, path], { encoding: 'utf8' }).split('\n')
  return new Map(
    lines.flatMap((line) => {
      const [address = '', type, name = ''] = line.split(' ')
      return type === 'T' ? [[name, Number.parseInt(address, 16)] as const] : []
    }),
  )
}

test('functions are found where the loader takes them from', { skip: needsTools }, async () => {
  await using directory = await temporaryDirectory()
  const path = await library(directory.path, ['-Wl,-z,separate-code', '-Wl,-Ttext-segment=0x10000'])
  using elf = new ElfFile(path)
  const found = elf.functions(new Set(['SSL_read', 'SSL_write', 'SSL_absent']))
  const addresses = addressesOf(path, ['-D'])
  const [read = 0, write = 0] = ['SSL_read', 'SSL_write'].map((name) => addresses.get(name))
  assert.deepEqual([...found.keys()].sort(), ['SSL_read', 'SSL_write'])
  assert.equal((found.get('SSL_write')?.offset ?? 0) - (found.get('SSL_read')?.offset ?? 0), write - read)
  assert.equal(elf.read(found.get('SSL_write')?.offset ?? 0, 5).toString('hex'), 'b878563412')
})

test('functions of a program that exports none are found in its symbol table, and nowhere once it is stripped', {
  skip: needsTools,
}, async () => {
  await using directory = await temporaryDirectory()
  const path = await library(directory.path, ['-fvisibility=hidden'])
  {
    using elf = new ElfFile(path)
    assert.equal(tlsProbes(elf)?.source, 'boringssl')
    assert.equal(elf.functions(new Set(['SSL_free'])).size, 1)
  }
  execFileSync('strip', [path])
  using stripped = new ElfFile(path)
  assert.equal(tlsProbes(stripped), undefined)
})

test('what is no ELF file of 64 bits is refused with its path', async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'file')
  for (const content of ['', 'text', Buffer.from('7f454c4601010100', 'hex'), Buffer.alloc(64)]) {
    writeFileSync(path, content)
    assert.throws(() => new ElfFile(path), { name: 'TypeError', message: new RegExp(path) })
  }
})

test('a file whose tables lie outside of it has no functions', { skip: needsTools }, async () => {
  await using directory = await temporaryDirectory()
  const path = await library(directory.path)
  using whole = new ElfFile(path)
  const bytes = Buffer.from(whole.read(0, 1 << 20))
  for (const [at, value] of [
    [40, 0x7fffffffn],
    [32, 0x7fffffffffffn],
    [40, BigInt(bytes.length - 10)],
  ] as const) {
    const broken = Buffer.from(bytes)
    broken.writeBigUInt64LE(value, at)
    const brokenPath = join(directory.path, `broken-${at}-${value}`)
    writeFileSync(brokenPath, broken)
    using elf = new ElfFile(brokenPath)
    assert.equal(elf.functions(new Set(['SSL_read'])).size, 0)
  }
})
