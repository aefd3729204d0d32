/** Where everything of the local stack listens, on 127.0.0.1: a contract that documentation and clients rely on. */
export const PORTS = {
  gatewayHttp: 8080,
  gatewayHttps: 8443,
  exampleApi: 8081,
  issuer: 4000,
  issuerMtls: 4001,
  introspector: 4010,
  verifier: 4020,
  authorizerGrpc: 9191,
  authorizerHttp: 9192,
  adminApi: 9090,
  nats: 4222,
  bitcoinRpc: 18443,
  bitcoinZmq: 28332,
} as const

/** Metrics and health of each service. */
export const HEALTH_PORTS = {
  'auth-issuer': 9400,
  'token-introspector': 9401,
  'payment-verifier': 9402,
  authorizer: 9403,
  'sensor-ingest': 9404,
  'alert-router': 9405,
  'node-sensor': 9406,
  'admin-api': 9407,
  gateway: 9408,
} as const

export type ServiceName = keyof typeof HEALTH_PORTS

export const HOST = '127.0.0.1'

/** A URL on the local host. */
export function localUrl(port: number, path = ''): string {
  return `http://${HOST}:${port}${path}`
}
