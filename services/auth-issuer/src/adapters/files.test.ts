import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { temporaryDirectory } from '@tollward/testkit'
import { readOperatorClient } from './files.ts'

const refused = (reason: RegExp) => (error: unknown) =>
  error instanceof Error && 'code' in error && error.code === 'failed_precondition' && reason.test(error.message)

test('an operator’s file that others can read, that is damaged or not there is refused without quoting it', async () => {
  await using directory = await temporaryDirectory()
  const file = join(directory.path, 'operator.json')
  await writeFile(file, '{"secretSha256":"very-secret"', { mode: 0o600 })
  assert.throws(() => readOperatorClient(file), refused(/is not JSON/))
  assert.throws(
    () => readOperatorClient(file),
    (error) => !String(error).includes('very-secret'),
  )
  const open = join(directory.path, 'open.json')
  await writeFile(open, '{}', { mode: 0o644 })
  assert.throws(() => readOperatorClient(open), refused(/can be read by others/))
  assert.throws(() => readOperatorClient(join(directory.path, 'absent.json')), refused(/cannot be read/))
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
