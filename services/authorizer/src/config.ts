import { decisionConfig } from '@tollward/decision'
import { baseConfig, port } from '@tollward/runtime'
import { z } from 'zod'

export const ConfigSchema = z.strictObject({
  ...baseConfig,
  ...decisionConfig,
  /** Where Envoy asks: envoy.service.auth.v3.Authorization/Check over gRPC. */
  grpcHost: z.string().min(1).default('127.0.0.1'),
  grpcPort: port.default(9191),
  /** Where other proxies ask: /forward-auth over HTTP. */
  httpHost: z.string().min(1).default('127.0.0.1'),
  httpPort: port.default(9192),
  /** Proxies that may ask /forward-auth: their X-Forwarded-* headers say what the request was. Addresses or CIDRs, with commas. */
  forwardAuthProxies: decisionConfig.trustedProxies.prefault('127.0.0.1,::1'),
  /** The header in which those proxies send the client's certificate, RFC 9440 or URL-encoded PEM. Without, they send none. */
  forwardAuthCertificateHeader: z
    .string()
    .regex(/^[A-Za-z0-9-]+$/)
    .toLowerCase()
    .optional(),
})

export type Config = z.output<typeof ConfigSchema>
