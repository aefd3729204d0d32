import { decisionConfig } from '@tollward/decision'
import { baseConfig, port } from '@tollward/runtime'
import { z } from 'zod'

/** A process is ended 10 s after it was asked to end, and what follows the draining takes some of that. */
const DRAIN_MS_MAX = 7000

const count = (byDefault: number) => z.coerce.number<string>().int().min(1).default(byDefault)

export const ConfigSchema = z.strictObject({
  ...baseConfig,
  ...decisionConfig,
  /** The API behind this gateway: scheme, host and port. */
  upstreamUrl: z.url({ protocol: /^https?$/ }).transform((url) => new URL(url).origin),
  /** How the API is spoken to: HTTP/1.1, or HTTP/2 over TLS (h2) or without (h2c), which gRPC needs. */
  upstreamProtocol: z.enum(['http/1.1', 'h2', 'h2c']).default('http/1.1'),
  httpHost: z.string().min(1).default('127.0.0.1'),
  httpPort: port.default(8080),
  httpsHost: z.string().min(1).default('127.0.0.1'),
  httpsPort: port.default(8443),
  /** PEM files. HTTPS is served only if both are given. */
  tlsCertFile: z.string().min(1).optional(),
  tlsKeyFile: z.string().min(1).optional(),
  /** PEM file with the authorities that vouch for who clients are. */
  tlsClientCaFile: z.string().min(1).optional(),
  /** Larger request bodies are refused. */
  bodyBytesMax: z.coerce
    .number<string>()
    .int()
    .min(0)
    .default(10 * 1024 * 1024),
  /** So much of a body is kept for rules that look into bodies; of a larger one they know nothing. */
  bodyDecisionBytesMax: count(64 * 1024),
  /** For the API's headers, and between two parts of its body. */
  upstreamTimeoutMs: count(30_000),
  /** Connections of clients, to each of the two ports, and of one address (IPv6: one /64) among them. */
  connectionsMax: count(10_000),
  connectionsPerSourceMax: count(1000),
  webSocketsMax: count(1000),
  /** A WebSocket on which neither side says anything for so long is ended. */
  webSocketIdleMs: count(300_000),
  /** However busy it is, a WebSocket is ended then, and its client is decided about anew. */
  webSocketLifetimeMs: count(3_600_000),
  /** Requests that are under way at the end get this long. */
  drainMs: z.coerce.number<string>().int().min(1).max(DRAIN_MS_MAX).default(5000),
  accessLog: z.enum(['off', 'common', 'combined', 'json']).default('off'),
  /** Appended to, and opened anew on SIGHUP; without it lines go to standard output. */
  accessLogFile: z.string().min(1).optional(),
})

/** What the API's URL and protocol say together; undefined: they fit. */
export function upstreamFault({ upstreamUrl, upstreamProtocol }: Config): string | undefined {
  const scheme = { h2: 'https:', h2c: 'http:', 'http/1.1': undefined }[upstreamProtocol]
  if (scheme === undefined || upstreamUrl.startsWith(scheme)) return undefined
  return `TOLLWARD_UPSTREAM_PROTOCOL=${upstreamProtocol} needs a TOLLWARD_UPSTREAM_URL that begins with ${scheme}`
}

export type Config = z.output<typeof ConfigSchema>
