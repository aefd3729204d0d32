import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'

/** No word of NATS, and no end of a line that could begin one. */
const NONSENSE = Buffer.from('\u0000\u00ff{"not": "nats"} <html>400 Bad Request</html>\r\n\r\n'.repeat(3), 'latin1')

/** What a line does with what is sent over it. */
export type LineFault = 'none' | 'nonsense' | { readonly slowMs: number }

/** A line to a server on this machine that a test can make slow, or noisy. */
export interface FaultyLine extends AsyncDisposable {
  readonly port: number
  /** slowMs is what a question and its answer take longer. Nonsense: whoever says something hears only that. */
  set(fault: LineFault): void
}

/** Opens a line to a port of 127.0.0.1. */
export async function openFaultyLine(targetPort: number): Promise<FaultyLine> {
  const sockets = new Set<Socket>()
  let fault: LineFault = 'none'
  const link = (from: Socket, to: Socket, isClient: boolean) => {
    sockets.add(from)
    let dueMs = 0
    from.on('data', (chunk) => {
      if (fault === 'nonsense') {
        if (isClient) from.write(NONSENSE)
        return
      }
      const slowMs = fault === 'none' ? 0 : fault.slowMs / 2
      const nowMs = performance.now()
      // What was sent first arrives first, also when the line has become faster meanwhile.
      dueMs = Math.max(nowMs + slowMs, dueMs)
      if (dueMs <= nowMs) to.write(chunk)
      else setTimeout(() => to.write(chunk), dueMs - nowMs)
    })
    from.on('error', () => from.destroy())
    from.on('close', () => {
      sockets.delete(from)
      to.destroy()
    })
  }
  const server = createServer({ noDelay: true }, (client) => {
    if (fault === 'nonsense') client.write(NONSENSE)
    const upstream = connect({ port: targetPort, host: '127.0.0.1', noDelay: true })
    link(client, upstream, true)
    link(upstream, client, false)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    set: (next) => {
      // Nothing comes of a conversation that lost its beginning.
      if (fault === 'nonsense') for (const socket of sockets) socket.destroy()
      fault = next
    },
    [Symbol.asyncDispose]: async () => {
      const closed = once(server, 'close')
      server.close()
      for (const socket of sockets) socket.destroy()
      await closed
    },
  }
}
