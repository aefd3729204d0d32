import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdir, readdir, readFile, rename, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { AppError } from '@tollward/errors'
import { requires, temporaryDirectory } from '@tollward/testkit'
import { detectionFinding } from '../domain/ocsf.ts'
import { alert, NOW_MS } from '../test-alert.ts'
import { FindingsFile } from './findings-file.ts'

const full = await requires({ root: true, tools: ['mount', 'umount'] })

const MIB = 1024 * 1024

function findingsFile(path: string, options: { bytesMax?: number; keep?: number; onRemoved?: () => void } = {}) {
  return new FindingsFile({ path, bytesMax: MIB, keep: 2, onRemoved: () => {}, ...options })
}

const finding = (alertId: string) => detectionFinding(alert({ alertId }), NOW_MS)

async function uids(path: string): Promise<string[]> {
  const lines = (await readFile(path, 'utf8')).split('\n')
  assert.equal(lines.pop(), '', 'the last line is whole')
  return lines.map((line) => JSON.parse(line).finding_info.uid)
}

test('a finding is one line, however often it is appended, also by the next process', async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'findings.jsonl')
  {
    await using file = findingsFile(path)
    assert.equal(await file.append('a', finding('a')), 'written')
    assert.equal(await file.append('a', finding('a')), 'present')
    assert.equal(await file.append('"\\', finding('"\\')), 'written')
  }
  await using file = findingsFile(path)
  assert.equal(await file.append('"\\', finding('"\\')), 'present')
  assert.equal(await file.append('b', finding('b')), 'written')
  assert.deepEqual(await uids(path), ['a', '"\\', 'b'])
})

test('a line that a crash cut in two is cut off and written again', async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'findings.jsonl')
  {
    await using file = findingsFile(path)
    await file.append('a', finding('a'))
    await file.append('b', finding('b'))
  }
  await truncate(path, (await stat(path)).size - 7)
  await using file = findingsFile(path)
  assert.equal(await file.append('b', finding('b')), 'written')
  assert.deepEqual(await uids(path), ['a', 'b'])
})

test('the file is put aside at its limit, so many are kept, the removed are counted, and nothing is written twice', async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'findings.jsonl')
  let removed = 0
  const lineBytes = JSON.stringify(finding('00')).length + 1
  await using file = findingsFile(path, { bytesMax: 3 * lineBytes, onRemoved: () => (removed += 1) })
  const names = Array.from({ length: 12 }, (_, index) => `${index + 10}`)
  for (const name of names) assert.equal(await file.append(name, finding(name)), 'written')
  assert.deepEqual((await readdir(directory.path)).sort(), ['findings.jsonl', 'findings.jsonl.1', 'findings.jsonl.2'])
  assert.deepEqual(await uids(`${path}.2`), ['13', '14', '15'])
  assert.deepEqual(await uids(path), ['19', '20', '21'])
  assert.equal(removed, 1)
  assert.equal(await file.append('18', finding('18')), 'present')
})

test('what the disk does not take is refused as unavailable, and written whole once it does', async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'not-yet', 'findings.jsonl')
  await using file = findingsFile(path)
  await assert.rejects(
    file.append('a', finding('a')),
    (error) => error instanceof AppError && error.code === 'unavailable',
  )
  assert.match(file.fault ?? '', /ENOENT/)
  await mkdir(join(directory.path, 'not-yet'))
  assert.equal(await file.append('a', finding('a')), 'written')
  assert.equal(file.fault, undefined)
  assert.deepEqual(await uids(path), ['a'])
})

test('a file that was moved or removed is made anew, not written where nobody reads', async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'findings.jsonl')
  await using file = findingsFile(path)
  await file.append('a', finding('a'))
  await rename(path, `${path}.1`)
  assert.equal(await file.append('a', finding('a')), 'present')
  assert.equal(await file.append('b', finding('b')), 'written')
  await rm(path)
  assert.equal(await file.append('c', finding('c')), 'written')
  assert.deepEqual(await uids(path), ['c'])
})

test('on a full disk an alert is refused, nothing of it stays, and it is written when there is room', {
  skip: full,
}, async () => {
  await using directory = await temporaryDirectory()
  await using small = await smallFileSystem(directory.path)
  const path = join(small.path, 'findings.jsonl')
  const filler = join(small.path, 'filler')
  await using file = findingsFile(path)
  await file.append('a', finding('a'))
  await assert.rejects(writeFile(filler, Buffer.alloc(MIB)), { code: 'ENOSPC' })
  const refused: string[] = []
  for (const name of ['b', 'c', 'd', 'e', 'f', 'g']) {
    await file.append(name, finding(name)).catch((error) => {
      assert(error instanceof AppError && error.code === 'unavailable')
      refused.push(name)
    })
  }
  assert(refused.length > 0)
  const kept = await uids(path)
  await rm(filler)
  for (const name of refused) assert.equal(await file.append(name, finding(name)), 'written')
  assert.deepEqual(await uids(path), [...kept, ...refused])
})

/** A file system of 64 KiB. */
async function smallFileSystem(parent: string) {
  const path = join(parent, 'small')
  await mkdir(path)
  await promisify(execFile)('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', path])
  return { path, [Symbol.asyncDispose]: async () => void (await promisify(execFile)('umount', ['--lazy', path])) }
}
