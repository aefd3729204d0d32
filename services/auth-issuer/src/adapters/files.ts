import { RESERVED_SCOPE_PREFIX } from '@tollward/documents'
import { AppError } from '@tollward/errors'
import { readSecretFile } from '@tollward/runtime'
import { calculateJwkThumbprint, importJWK, SignJWT } from 'jose'
import { z } from 'zod'
import type { OperatorClient } from '../domain/client.ts'
import type { InternalClaims } from '../domain/token.ts'

const coordinate = z.base64url().length(43)

const PrivateKeySchema = z.object({
  kty: z.literal('EC'),
  crv: z.literal('P-256'),
  x: coordinate,
  y: coordinate,
  d: coordinate,
  alg: z.literal('ES256').default('ES256'),
  use: z.literal('sig').default('sig'),
  kid: z.string().min(1).optional(),
})

const KeySetSchema = z.strictObject({ keys: z.array(PrivateKeySchema).min(1) })

const OperatorSchema = z.strictObject({
  clientId: z.string().min(1).max(63),
  secretSha256: z.string().regex(/^[0-9a-f]{64}$/, { error: 'is 64 lower-case hexadecimal digits' }),
  scopes: z.array(z.string().startsWith(RESERVED_SCOPE_PREFIX)).min(1),
})

/** The issuer's keys. */
export interface SigningKeys {
  /** Private keys, each with its `kid`. The first one signs; verifiers get the public part of all. */
  readonly jwks: { keys: (Omit<z.output<typeof PrivateKeySchema>, 'kid'> & { kid: string })[] }
  /** Signs an internal token: a JWT of type at+jwt (RFC 9068). */
  mint(claims: InternalClaims): Promise<string>
  /** Signs an introspection answer: a JWT of type token-introspection+jwt (RFC 9701, section 5). */
  signIntrospection(claims: { iss: string; aud: string; iat: number; token_introspection: unknown }): Promise<string>
}

/** Reads the issuer's keys from a JWKS file that only its owner can read. AppError `failed_precondition` says what is wrong. */
export async function readSigningKeys(path: string): Promise<SigningKeys> {
  const { keys } = readJson(path, KeySetSchema)
  const named = await Promise.all(
    keys.map(async ({ kid, ...key }) => ({ ...key, kid: kid ?? (await calculateJwkThumbprint(key)) })),
  )
  const [first] = named
  if (!first) throw new AppError('failed_precondition', `${path} holds no key.`)
  const signingKey = await importJWK(first, 'ES256')
  const sign = (claims: object, typ: string) =>
    new SignJWT({ ...claims }).setProtectedHeader({ alg: 'ES256', typ, kid: first.kid }).sign(signingKey)
  return {
    jwks: { keys: named },
    mint: (claims) => sign(claims, 'at+jwt'),
    signIntrospection: (claims) => sign(claims, 'token-introspection+jwt'),
  }
}

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
