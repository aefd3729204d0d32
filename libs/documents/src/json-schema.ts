import { z } from 'zod'
import { BLOCK_LIST_KIND, BlockListSchema } from './block-list.ts'
import { EXAMPLES_KIND, PolicyExamplesSchema } from './examples.ts'
import { KINDS } from './kinds.ts'

/** Where the generated schemas are committed, for editors. */
export const SCHEMAS_DIRECTORY = new URL('../../../docs/schemas/', import.meta.url)

/** JSON Schema (draft 2020-12) of each kind, for editors: what a document may contain before defaults are filled in. */
export function jsonSchemas(): Map<string, object> {
  return new Map(
    Object.entries({ ...KINDS, [EXAMPLES_KIND]: PolicyExamplesSchema, [BLOCK_LIST_KIND]: BlockListSchema }).map(
      ([kind, schema]) => [kind, { title: kind, ...z.toJSONSchema(schema, { io: 'input' }) }],
    ),
  )
}

/** The text of a schema's file. */
export function formatJsonSchema(schema: object): string {
  return `${JSON.stringify(schema, null, 2)}\n`
}
