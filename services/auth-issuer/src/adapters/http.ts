import { constants } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type RequestListener, type Server } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import type { AddressInfo } from 'node:net'

/** Whole request, body included: a client that sends slower than this is not waited for. */
const REQUEST_TIMEOUT_MS = 10_000

/** Connections at once; more are refused, so that idle ones cannot use up the process. */
const CONNECTIONS_MAX = 4096

const TIMEOUTS = { requestTimeout: REQUEST_TIMEOUT_MS, headersTimeout: REQUEST_TIMEOUT_MS }

export interface HttpServer extends AsyncDisposable {
  readonly port: number
}

/** What a listener for clients with certificates needs; PEM. */
export interface TlsFiles {
  readonly cert: string
  readonly key: string
  /** Authorities whose certificates count as verified. No others do. */
  readonly clientCa: string
}

/** Serves HTTP until disposed; then what is under way is answered and the rest closed. */
export function listenHttp(listener: RequestListener, host: string, port: number): Promise<HttpServer> {
  return listening(createServer(TIMEOUTS, listener), host, port)
}

/**
 * Serves HTTPS and asks clients for a certificate. None is refused here, because what a certificate has to be depends on the
 * client (RFC 8705, section 2): whoever answers looks at `socket.authorized` and at the certificate.
 */
export function listenHttps(
  listener: RequestListener,
  { cert, key, clientCa }: TlsFiles,
  host: string,
  port: number,
): Promise<HttpServer> {
  const options = {
    ...TIMEOUTS,
    cert,
    key,
    ca: clientCa,
    requestCert: true,
    rejectUnauthorized: false,
    handshakeTimeout: REQUEST_TIMEOUT_MS,
    // A resumed session brings the verdict of an earlier day along: every connection is to be judged by itself.
    secureOptions: constants.SSL_OP_NO_TICKET,
  }
  return listening(createTlsServer(options, listener), host, port)
}

async function listening(server: Server, host: string, port: number): Promise<HttpServer> {
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
