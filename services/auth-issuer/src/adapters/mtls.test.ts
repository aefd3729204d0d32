import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { temporaryDirectory } from '@tollward/testkit'
import { readMtls } from './mtls.ts'

test('the listener for certificates is off, or wholly configured, and its key is not readable by others', async () => {
  await using directory = await temporaryDirectory()
  const files = ['mtlsCertFile', 'mtlsKeyFile', 'mtlsClientCaFile'] as const
  const paths = Object.fromEntries(files.map((name) => [name, join(directory.path, name)]))
  const whole = {
    mtlsUrl: 'https://auth.example:4001',
    mtlsCertFile: '',
    mtlsKeyFile: '',
    mtlsClientCaFile: '',
    ...paths,
  }
  for (const name of files) await writeFile(whole[name], name, { mode: 0o600 })
  assert.equal(readMtls({}), undefined)
  assert.deepEqual(readMtls(whole), {
    url: 'https://auth.example:4001',
    cert: 'mtlsCertFile',
    key: 'mtlsKeyFile',
    clientCa: 'mtlsClientCaFile',
  })
  for (const name of ['mtlsUrl', ...files] as const) {
    const { [name]: _missing, ...part } = whole
    const variable = new RegExp(`missing: TOLLWARD_${name.replace(/[A-Z]/g, '_$&').toUpperCase()}$`)
    assert.throws(() => readMtls(part), { code: 'failed_precondition', message: variable })
  }
  const open = join(directory.path, 'open')
  await writeFile(open, 'key', { mode: 0o644 })
  assert.throws(() => readMtls({ ...whole, mtlsKeyFile: open }), { message: /can be read by others/ })
})
