import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { test } from 'node:test'
import { KINDS } from './kinds.ts'
import { parseDocuments } from './parse.ts'

test('the reference has an example of each kind, and every one of them is taken', async () => {
  const reference = await readFile(new URL('../../../docs/documents.md', import.meta.url), 'utf8')
  const examples = [...reference.matchAll(/```yaml\n(.*?)```/gs)].map(([, yaml = '']) => yaml)
  const documents = examples.flatMap((yaml, index) => parseDocuments(yaml, `example ${index + 1}`))
  assert.deepEqual(new Set(documents.map(({ kind }) => kind)), new Set(Object.keys(KINDS)))
})
