import assert from 'node:assert/strict'
import { readdir, readFile } from 'node:fs/promises'
import { test } from 'node:test'
import { formatJsonSchema, jsonSchemas, SCHEMAS_DIRECTORY } from './json-schema.ts'

test('the committed JSON Schemas are what the code generates', async () => {
  const schemas = jsonSchemas()
  assert.deepEqual((await readdir(SCHEMAS_DIRECTORY)).sort(), [...schemas.keys()].map((kind) => `${kind}.json`).sort())
  for (const [kind, schema] of schemas) {
    const committed = await readFile(new URL(`${kind}.json`, SCHEMAS_DIRECTORY), 'utf8')
    assert.equal(committed, formatJsonSchema(schema), `run: npm run generate -w @tollward/documents`)
  }
})
