import { RESERVED_SCOPE_PREFIX } from '@tollward/documents'
import { AppError } from '@tollward/errors'
import { readSecretFile } from '@tollward/runtime'
import { z } from 'zod'
import type { OperatorClient } from '../domain/client.ts'

const OperatorSchema = z.strictObject({
  clientId: z.string().min(1).max(63),
  secretSha256: z.string().regex(/^[0-9a-f]{64}$/, { error: 'is 64 lower-case hexadecimal digits' }),
  scopes: z.array(z.string().startsWith(RESERVED_SCOPE_PREFIX)).min(1),
})

/** Reads the operator's client from a file that only its owner can read. AppError `failed_precondition` says what is wrong. */
export function readOperatorClient(path: string): OperatorClient {
  return readJson(path, OperatorSchema)
}

function readJson<Schema extends z.ZodType>(path: string, schema: Schema): z.output<Schema> {
  let value: unknown
  try {
    value = JSON.parse(readSecretFile(path))
  } catch (error) {
    if (error instanceof AppError) throw error
    // The text of a JSON error quotes the file, which is secret.
    const reason = error instanceof SyntaxError ? 'is not JSON' : 'cannot be read'
    throw new AppError('failed_precondition', `${path} ${reason}.`)
  }
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const faults = result.error.issues.map(({ path: at, message }) => `${at.join('.')}: ${message}`)
  throw new AppError('failed_precondition', `${path} is not as it should be: ${faults.join('; ')}`)
}
