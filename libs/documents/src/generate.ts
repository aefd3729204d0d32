import { mkdir, writeFile } from 'node:fs/promises'
import { formatJsonSchema, jsonSchemas, SCHEMAS_DIRECTORY } from './json-schema.ts'

await mkdir(SCHEMAS_DIRECTORY, { recursive: true })
for (const [kind, schema] of jsonSchemas())
  await writeFile(new URL(`${kind}.json`, SCHEMAS_DIRECTORY), formatJsonSchema(schema))
