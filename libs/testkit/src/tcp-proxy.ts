import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'

/** A TCP proxy on 127.0.0.1 whose traffic a test can hold back. */
export interface TcpProxy extends AsyncDisposable {
  readonly port: number
  /** Forwards nothing more, in either direction, and closes nothing: as a network that drops every packet. */
  pause(): void
  /** Goes on with everything that was held back. */
  resume(): void
}

/** Starts a proxy in front of a port of 127.0.0.1. */
export async function startTcpProxy(targetPort: number): Promise<TcpProxy> {
  const sockets = new Set<Socket>()
  let paused = false
  const hold = (socket: Socket) => {
    if (paused) socket.pause()
    else socket.resume()
  }
  const link = (from: Socket, to: Socket) => {
    sockets.add(from)
    from.on('data', (chunk) => to.write(chunk))
    from.on('error', () => from.destroy())
    from.on('close', () => {
      sockets.delete(from)
      to.destroy()
    })
    hold(from)
  }
  const server = createServer({ noDelay: true }, (client) => {
    const upstream = connect({ port: targetPort, host: '127.0.0.1', noDelay: true })
    link(client, upstream)
    link(upstream, client)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const setPaused = (value: boolean) => {
    paused = value
    for (const socket of sockets) hold(socket)
  }
  return {
    port: (server.address() as AddressInfo).port,
    pause: () => setPaused(true),
    resume: () => setPaused(false),
    [Symbol.asyncDispose]: async () => {
      const closed = once(server, 'close')
      server.close()
      for (const socket of sockets) socket.destroy()
      await closed
    },
  }
}
