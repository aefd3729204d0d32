import assert from 'node:assert/strict'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { type ExportLedgerResponse, ExportLedgerResponseSchema, PassSchema } from '@tollward/contracts/payment'
import { temporaryDirectory } from '@tollward/testkit'
import { checkBackup, readBackup, writeBackup } from './backup-file.ts'

const HEAD = { network: 'regtest', descriptor: 'wpkh(tpub/0/*)#aaaaaaaa', nextAddressIndex: 7 }

async function* parts(): AsyncGenerator<ExportLedgerResponse> {
  yield create(ExportLedgerResponseSchema, { ...HEAD, entries: [Buffer.from('one'), Buffer.from('two')] })
  yield create(ExportLedgerResponseSchema, { ...HEAD, nextAddressIndex: 8, entries: [Buffer.from('three')] })
  yield create(ExportLedgerResponseSchema, { passes: [create(PassSchema, { passId: 'p', quotaRequests: 5n })] })
}

test('a back-up is read as it was written, and readable by its owner only', async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'backup')
  const written = await writeBackup(path, parts())
  assert.equal((await stat(path)).mode & 0o777, 0o600)
  assert.deepEqual(await checkBackup(path), written)
  const { madeAt: _madeAt, ...summary } = written
  assert.deepEqual(summary, { ...HEAD, nextAddressIndex: 8, entries: 3, passes: 1 })
  const items = await Array.fromAsync(readBackup(path))
  const shown = items.map((item) => ('entry' in item ? Buffer.from(item.entry).toString() : item.pass.passId))
  assert.deepEqual(shown, ['one', 'two', 'three', 'p'])
})

test('a back-up that lacks anything or has one changed character is none', async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'backup')
  await writeBackup(path, parts())
  const text = await readFile(path, 'utf8')
  const isRefused = async (changed: string, what: string) => {
    const other = join(directory.path, 'changed')
    await writeFile(other, changed)
    await assert.rejects(checkBackup(other), { code: 'invalid_argument' }, what)
  }
  const lines = text.trimEnd().split('\n')
  for (const index of lines.keys()) {
    await isRefused(`${lines.toSpliced(index, 1).join('\n')}\n`, `without line ${index}`)
    await isRefused(`${lines.toSpliced(index, 0, lines[index] ?? '').join('\n')}\n`, `with line ${index} twice`)
  }
  for (let index = 0; index < text.length; index += 1) {
    const changed = text.charAt(index) === '1' ? '2' : '1'
    await isRefused(`${text.slice(0, index)}${changed}${text.slice(index + 1)}`, `at ${index}`)
  }
  await isRefused('', 'empty')
})

test('an export that fails leaves no file, and a file that is there is not written over', async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'backup')
  const failing = async function* () {
    yield* parts()
    throw new Error('cut off')
  }
  await assert.rejects(writeBackup(path, failing()), /cut off/)
  await writeBackup(path, parts())
  const text = await readFile(path, 'utf8')
  await assert.rejects(writeBackup(path, parts()), { code: 'already_exists' })
  assert.equal(await readFile(path, 'utf8'), text)
})
