import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { temporaryDirectory } from '@tollward/testkit'
import { exportJWK, generateKeyPair } from 'jose'
import { readOperatorClient, readSigningKeys } from './files.ts'

const refused = (reason: RegExp) => (error: unknown) =>
  error instanceof Error && 'code' in error && error.code === 'failed_precondition' && reason.test(error.message)

test('a key file that others can read, that is damaged, or that holds another kind of key is refused without quoting it', async () => {
  await using directory = await temporaryDirectory()
  const file = join(directory.path, 'jwks.json')
  const ec = await exportJWK((await generateKeyPair('ES256', { extractable: true })).privateKey)
  const rsa = await exportJWK((await generateKeyPair('RS256', { extractable: true })).privateKey)
  const { d, ...publicOnly } = ec
  const cases: [string, RegExp][] = [
    ['{"keys":[{"d":"very-secret"', /is not JSON/],
    ['{"keys":[]}', /is not as it should be: keys/],
    [JSON.stringify({ keys: [publicOnly] }), /keys\.0\.d/],
    [JSON.stringify({ keys: [rsa] }), /keys\.0\.kty/],
    [JSON.stringify(ec), /keys/],
  ]
  for (const [text, reason] of cases) {
    await writeFile(file, text, { mode: 0o600 })
    await assert.rejects(readSigningKeys(file), refused(reason))
    await readSigningKeys(file).catch((error: unknown) => assert.doesNotMatch(String(error), /very-secret/))
  }
  const open = join(directory.path, 'open.json')
  await writeFile(open, JSON.stringify({ keys: [ec] }), { mode: 0o644 })
  await assert.rejects(readSigningKeys(open), refused(/can be read by others/))
  await assert.rejects(readSigningKeys(join(directory.path, 'absent.json')), refused(/cannot be read/))
})

test('the operator’s file gives reserved scopes only, and a hash instead of a secret', async () => {
  await using directory = await temporaryDirectory()
  const file = join(directory.path, 'operator.json')
  const good = { clientId: 'operator', secretSha256: 'ab'.repeat(32), scopes: ['tollward.admin'] }
  const cases: [unknown, RegExp][] = [
    [{ ...good, scopes: ['orders'] }, /scopes\.0/],
    [{ ...good, scopes: [] }, /scopes/],
    [{ ...good, secretSha256: 'secret' }, /secretSha256/],
    [{ ...good, secret: 'x' }, /secret/],
  ]
  for (const [value, reason] of cases) {
    await writeFile(file, JSON.stringify(value), { mode: 0o600 })
    assert.throws(() => readOperatorClient(file), refused(reason))
  }
  await writeFile(file, JSON.stringify(good), { mode: 0o600 })
  assert.deepEqual(readOperatorClient(file), good)
})
