import { decisionConfig } from '@tollward/decision'
import { duration, durationMs } from '@tollward/documents'
import { baseConfig, port } from '@tollward/runtime'
import { z } from 'zod'
import { TermsSchema } from './domain/registration.ts'

/** Written as in documents, such as 30d; milliseconds in code. */
const durationInMs = duration.transform(durationMs)

const SelfRegistrationSchema = z.strictObject({
  /** What clients that registered themselves may have, and what their tokens are for. */
  scopes: TermsSchema.shape.scopes,
  audience: TermsSchema.shape.audience,
  /** From one IPv4 address or one /64 of IPv6. */
  registrationsPerSourceAndHour: z.int().min(1).max(1000).default(10),
  /** How many of them there may be. */
  clientsMax: z.int().min(1).max(50_000).default(10_000),
})

/** A JSON object in an environment variable. */
const selfRegistration = z.string().transform((text, context) => {
  try {
    const result = SelfRegistrationSchema.safeParse(JSON.parse(text))
    if (result.success) return result.data
    for (const { path, message } of result.error.issues) context.addIssue({ code: 'custom', path, message })
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error
    context.addIssue({ code: 'custom', message: 'is not JSON' })
  }
  return z.NEVER
})

/** Configuration of auth-issuer, from TOLLWARD_* variables. */
export const ConfigSchema = z.strictObject({
  ...baseConfig,
  listenHost: z.string().min(1).default('127.0.0.1'),
  listenPort: port.default(4000),
  /** The issuer identifier (RFC 8414): what clients reach, without path and without slash at the end. */
  issuerUrl: z.url({ protocol: /^https?$/ }).refine((text) => URL.canParse(text) && new URL(text).origin === text, {
    error: 'is scheme, host and port only, such as https://auth.example.com',
  }),
  /** Secrets that all replicas share, one a line, 32 bytes as base64url, not readable by others; the first one is in use. */
  masterSecretFile: z.string().min(1),
  /** How long a key signs until the next one does. */
  keyRotationInterval: durationInMs.prefault('30d'),
  /** How long verifiers may keep the published keys without asking again; a new key is published for twice as long before it signs. */
  jwksMaxAge: durationInMs.prefault('10m'),
  /** Where clients with certificates connect over TLS (RFC 8705). Served if mtlsUrl, mtlsCertFile, mtlsKeyFile and mtlsClientCaFile are given. */
  mtlsListenPort: port.default(4001),
  /** What such clients reach: scheme https, host and port. */
  mtlsUrl: z
    .url({ protocol: /^https$/ })
    .refine((text) => URL.canParse(text) && new URL(text).origin === text, {
      error: 'is https, host and port only, such as https://mtls.auth.example.com',
    })
    .optional(),
  /** The listener's own certificate with its chain, PEM. */
  mtlsCertFile: z.string().min(1).optional(),
  /** Its private key, PEM; not readable by others. */
  mtlsKeyFile: z.string().min(1).optional(),
  /** Authorities whose certificates tls_client_auth takes, PEM. */
  mtlsClientCaFile: z.string().min(1).optional(),
  /** Credential of the operator, not readable by others; without it nobody can administer by token. */
  operatorClientFile: z.string().min(1).optional(),
  /** JSON: lets anybody register clients that may do nothing but buy a pass and use it; without it nobody can. */
  selfRegistration: selfRegistration.optional(),
  /** Where token-introspector is reached; advertised if given. */
  introspectionUrl: z.url({ protocol: /^https?$/ }).optional(),
  /** Proxies in front whose X-Forwarded-For tells where a request comes from. None: its connection's peer does. */
  trustedProxies: decisionConfig.trustedProxies,
})

export type Config = z.output<typeof ConfigSchema>
