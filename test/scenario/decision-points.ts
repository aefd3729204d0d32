import type { AddressInfo } from 'node:net'
import { credentials } from '@grpc/grpc-js'
import { Authorization } from '@tollward/contracts/envoy'
import { type GrpcClient, grpcClient } from '@tollward/contracts/grpc'
import { createApi } from '@tollward/example-api'
import { freePort, startService } from '@tollward/testkit'
import type { Identity } from './identity.ts'

/** Gateway and authorizer beside an identity, with the example API behind the gateway. */
export interface DecisionPoints extends AsyncDisposable {
  readonly gatewayUrl: string
  readonly gatewayPort: number
  readonly check: GrpcClient<typeof Authorization>
}

/** Starts them, with a policy that lets every known client with the scope `orders` have /echo. */
export async function startDecisionPoints({ nats, apply }: Identity): Promise<DecisionPoints> {
  await using resources = new AsyncDisposableStack()
  await apply('ApiPolicy', 'example', {
    hosts: ['*'],
    rules: [
      { name: 'public', match: { methods: ['GET'], path: '/public' }, anonymous: true },
      { name: 'echo', match: { path: '/echo' }, require: { token: { scopes: ['orders'] } } },
    ],
  })
  const api = createApi()
  resources.defer(() => api.close())
  await api.listen({ host: '127.0.0.1', port: 0 })
  const [gatewayPort, grpcPort] = [await freePort(), await freePort()]
  resources.use(
    await startService('gateway', {
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_UPSTREAM_URL: `http://127.0.0.1:${(api.server.address() as AddressInfo).port}`,
      TOLLWARD_HTTP_PORT: String(gatewayPort),
    }),
  )
  resources.use(
    await startService('authorizer', {
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_GRPC_PORT: String(grpcPort),
      TOLLWARD_HTTP_PORT: String(await freePort()),
    }),
  )
  const check = resources.use(grpcClient(Authorization, `127.0.0.1:${grpcPort}`, credentials.createInsecure()))
  const owned = resources.move()
  return {
    gatewayUrl: `http://127.0.0.1:${gatewayPort}`,
    gatewayPort,
    check,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

/** Asks the authorizer as Envoy does, and gives the HTTP status that the caller would get. */
export async function checkStatus(
  check: DecisionPoints['check'],
  path: string,
  headers: Readonly<Record<string, string>>,
): Promise<number> {
  const fields = { ':authority': 'api.example.com', ':path': path, ':method': 'GET', ':scheme': 'http', ...headers }
  const entries = Object.entries(fields).map(([key, value]) => ({ key, rawValue: Buffer.from(value) }))
  const http = { method: 'GET', path, host: 'api.example.com', scheme: 'http', protocol: 'HTTP/1.1', size: -1n }
  const socketAddress = { address: '203.0.113.9', portSpecifier: { case: 'portValue' as const, value: 43_210 } }
  const { status, httpResponse } = await check.check({
    attributes: {
      source: { address: { address: { case: 'socketAddress', value: socketAddress } } },
      request: { http: { ...http, headerMap: { headers: entries } } },
    },
  })
  if (status?.code === 0 && httpResponse.case === 'okResponse') return 200
  return httpResponse.case === 'deniedResponse' ? (httpResponse.value.status?.code ?? 0) : 0
}
