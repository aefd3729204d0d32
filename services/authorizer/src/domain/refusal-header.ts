import type { HeaderField } from '@tollward/decision'
import { z } from 'zod'

/** A refusal as it goes to the client. */
export interface WholeRefusal {
  readonly status: number
  readonly headers: readonly HeaderField[]
  readonly body: string
}

/**
 * Holds a whole refusal for a proxy that passes on neither its status nor its body: it hands the header back to any replica of the
 * authorizer, which makes the answer of it. Nothing is kept for that, and nothing is decided twice.
 */
export const REFUSAL_HEADER = 'x-tollward-refusal'

const RefusalSchema = z.strictObject({
  status: z.int().min(400).max(599),
  headers: z.array(z.tuple([z.string().regex(/^[a-z0-9-]+$/), z.string().regex(/^[\x20-\x7e]*$/)]).readonly()),
  body: z.string(),
})

/** The refusal as a header value. */
export function packRefusal({ status, headers, body }: WholeRefusal): string {
  return Buffer.from(JSON.stringify({ status, headers, body })).toString('base64url')
}

/** The refusal in a header value; undefined if it holds none. */
export function unpackRefusal(value: string): WholeRefusal | undefined {
  try {
    return RefusalSchema.parse(JSON.parse(Buffer.from(value, 'base64url').toString()))
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof z.ZodError) return undefined
    throw error
  }
}
