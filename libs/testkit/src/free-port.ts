import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:net'

/** Below Linux's range for outgoing connections and `listen(0)`, so that neither takes the port before its user does. */
const PORT_MIN = 20_000
const PORT_MAX = 31_999
const TRIES_MAX = 100

const given = new Set<number>()

/**
 * A TCP port of 127.0.0.1 that nobody listens on, never the same twice in one process. For programs that can't choose one
 * themselves; where `listen(0)` is possible, prefer that.
 */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < TRIES_MAX; tries++) {
    const port = randomInt(PORT_MIN, PORT_MAX + 1)
    if (!given.has(port) && (await isFree(port))) {
      given.add(port)
      return port
    }
  }
  throw new Error(`no free port among ${TRIES_MAX} tried between ${PORT_MIN} and ${PORT_MAX}`)
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer()
  try {
    server.listen(port, '127.0.0.1')
    await once(server, 'listening')
    return true
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EADDRINUSE') return false
    throw error
  } finally {
    server.close()
  }
}
