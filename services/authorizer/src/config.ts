import { decisionConfig } from '@tollward/decision'
import { baseConfig, port } from '@tollward/runtime'
import { z } from 'zod'

/** What an address of a unix socket holds (unix(7)), less the name that it is bound under first. */
const SOCKET_PATH_BYTES_MAX = 103

export const ConfigSchema = z.strictObject({
  ...baseConfig,
  ...decisionConfig,
  /** Where Envoy asks: envoy.service.auth.v3.Authorization/Check over gRPC. */
  grpcHost: z.string().min(1).default('127.0.0.1'),
  grpcPort: port.default(9191),
  /** A unix socket in the place of both, such as /run/tollward/authorizer.sock; whoever may write to it may ask. */
  grpcSocket: z.string().min(1).max(SOCKET_PATH_BYTES_MAX).optional(),
  /** PEM. With both, gRPC is served over TLS; the key must not be readable by others. */
  grpcTlsCertFile: z.string().min(1).optional(),
  grpcTlsKeyFile: z.string().min(1).optional(),
  /** PEM of the authorities whose client certificates may ask; without it anybody may who reaches the port. */
  grpcClientCaFile: z.string().min(1).optional(),
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
