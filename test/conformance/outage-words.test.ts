import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { test } from 'node:test'
import { outageTable } from '../scenario/outage-words.ts'

test('the operators’ table of what clients see in an outage is the one that outages are held to', async () => {
  const operations = await readFile(new URL('../../docs/operations.md', import.meta.url), 'utf8')
  assert.ok(operations.includes(outageTable()), `docs/operations.md should have:\n${outageTable()}`)
})
