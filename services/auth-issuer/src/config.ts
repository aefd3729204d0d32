import { baseConfig, port } from '@tollward/runtime'
import { z } from 'zod'

/** Configuration of auth-issuer, from TOLLWARD_* variables. */
export const ConfigSchema = z.strictObject({
  ...baseConfig,
  listenHost: z.string().min(1).default('127.0.0.1'),
  listenPort: port.default(4000),
  /** The issuer identifier (RFC 8414): what clients reach, without path and without slash at the end. */
  issuerUrl: z.url({ protocol: /^https?$/ }).refine((text) => URL.canParse(text) && new URL(text).origin === text, {
    error: 'is scheme, host and port only, such as https://auth.example.com',
  }),
  /** JWKS with the private ES256 keys, not readable by others; the first one signs, all are published. */
  jwksFile: z.string().min(1),
  /** Secrets that all replicas share, one a line, 32 bytes as base64url, not readable by others; the first one is in use. */
  masterSecretFile: z.string().min(1),
  /** Credential of the operator, not readable by others; without it nobody can administer by token. */
  operatorClientFile: z.string().min(1).optional(),
  /** Where token-introspector is reached; advertised if given. */
  introspectionUrl: z.url({ protocol: /^https?$/ }).optional(),
})

export type Config = z.output<typeof ConfigSchema>
