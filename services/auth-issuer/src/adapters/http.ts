import { once } from 'node:events'
import { createServer, type RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'

/** Whole request, body included: a client that sends slower than this is not waited for. */
const REQUEST_TIMEOUT_MS = 10_000

/** Connections at once; more are refused, so that idle ones cannot use up the process. */
const CONNECTIONS_MAX = 4096

export interface HttpServer extends AsyncDisposable {
  readonly port: number
}

/** Serves HTTP until disposed; then what is under way is answered and the rest closed. */
export async function listenHttp(listener: RequestListener, host: string, port: number): Promise<HttpServer> {
  const server = createServer({ requestTimeout: REQUEST_TIMEOUT_MS, headersTimeout: REQUEST_TIMEOUT_MS }, listener)
  server.maxConnections = CONNECTIONS_MAX
  server.listen(port, host)
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    [Symbol.asyncDispose]: async () => {
      const closed = once(server, 'close')
      server.close()
      server.closeIdleConnections()
      await closed
    },
  }
}
