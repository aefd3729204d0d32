import { decisionConfig } from '@tollward/decision'
import { baseConfig, port } from '@tollward/runtime'
import { z } from 'zod'

export const ConfigSchema = z.strictObject({
  ...baseConfig,
  ...decisionConfig,
  /** The API behind this gateway: scheme, host and port. */
  upstreamUrl: z.url({ protocol: /^https?$/ }).transform((url) => new URL(url).origin),
  httpHost: z.string().min(1).default('127.0.0.1'),
  httpPort: port.default(8080),
  httpsHost: z.string().min(1).default('127.0.0.1'),
  httpsPort: port.default(8443),
  /** PEM files. HTTPS is served only if both are given. */
  tlsCertFile: z.string().min(1).optional(),
  tlsKeyFile: z.string().min(1).optional(),
  /** Larger request bodies are refused. */
  bodyBytesMax: z.coerce
    .number<string>()
    .int()
    .min(0)
    .default(10 * 1024 * 1024),
  /** For the API's headers, and between two parts of its body. */
  upstreamTimeoutMs: z.coerce.number<string>().int().min(1).default(30_000),
})

export type Config = z.output<typeof ConfigSchema>
