import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Registry } from 'prom-client'

/** Why something is not ready, in words; undefined: it is. */
export type Check = () => string | undefined

/** Whether this process can do its work. */
export interface Health {
  /** Adds a condition that readiness needs. */
  check(name: string, check: Check): void
  /** How far start-up is, in words: part of the reasons until it is over. */
  starting(how: string): void
  /** Start-up is over. */
  ready(): void
  /** Reasons why the process is not ready; none: it is. */
  reasons(): string[]
}

export interface HealthServer extends Health, AsyncDisposable {
  readonly port: number
  /** Shutdown began: readiness ends before anything is closed. */
  stopping(): void
}

/** Serves /metrics, /healthz/live and /healthz/ready (200, or 503 with the reasons). */
export async function startHealthServer(options: {
  host: string
  port: number
  registry: Registry
}): Promise<HealthServer> {
  const checks = new Map<string, Check>()
  let phase: 'starting' | 'ready' | 'stopping' = 'starting'
  let progress = ''
  const reasons = () => {
    if (phase === 'starting' && progress !== '') return [`is starting: ${progress}`]
    if (phase !== 'ready') return [`is ${phase}`]
    return [...checks].flatMap(([name, check]) => {
      const reason = check()
      return reason === undefined ? [] : [`${name}: ${reason}`]
    })
  }
  const server = createServer((request, response) => {
    const answer = async () => {
      if (request.method !== 'GET') return send(405, 'text/plain', 'Only GET is served here.\n')
      if (request.url === '/healthz/live') return send(200, 'text/plain', 'live\n')
      if (request.url === '/healthz/ready') {
        const missing = reasons()
        return send(
          missing.length === 0 ? 200 : 503,
          'application/json',
          `${JSON.stringify({ ready: missing.length === 0, reasons: missing })}\n`,
        )
      }
      if (request.url === '/metrics') return send(200, options.registry.contentType, await options.registry.metrics())
      return send(404, 'text/plain', 'Here are /metrics, /healthz/live and /healthz/ready.\n')
    }
    const send = (status: number, type: string, body: string) => {
      response.writeHead(status, { 'content-type': type, 'cache-control': 'no-store' }).end(body)
    }
    answer().catch(() => send(500, 'text/plain', 'The metrics could not be read.\n'))
  })
  await listen(server, options.host, options.port)
  return {
    port: (server.address() as AddressInfo).port,
    check: (name, check) => void checks.set(name, check),
    starting: (how) => {
      progress = how
    },
    ready: () => {
      if (phase === 'starting') phase = 'ready'
    },
    reasons,
    stopping: () => {
      phase = 'stopping'
    },
    [Symbol.asyncDispose]: async () => {
      server.close()
      server.closeAllConnections()
      await once(server, 'close')
    },
  }
}

async function listen(server: Server, host: string, port: number): Promise<void> {
  server.listen(port, host)
  await once(server, 'listening')
}
