import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'

/** Spreads connections over several servers, as a load balancer of TCP does: no stickiness, no retries of requests. */
export interface Balancer extends AsyncDisposable {
  readonly port: number
}

/** Listens on `port` of 127.0.0.1 and hands each connection to the next of the `targets` that takes it. */
export async function startBalancer(port: number, targets: readonly number[]): Promise<Balancer> {
  let turn = 0
  const open = new Set<Socket>()
  const server = createServer((client) => {
    open.add(client)
    client.on('close', () => open.delete(client))
    client.on('error', () => client.destroy())
    join(
      client,
      Array.from({ length: targets.length }, (_, index) => targets[(turn + index) % targets.length] ?? 0),
    )
    turn += 1
  })
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    [Symbol.asyncDispose]: async () => {
      for (const socket of open) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
}

/** Joins the client with the first target that takes a connection; without one the client's is closed. */
function join(client: Socket, [target, ...others]: readonly number[]): void {
  if (target === undefined) {
    client.destroy()
    return
  }
  const upstream = connect({ host: '127.0.0.1', port: target })
  let connected = false
  upstream.on('error', () => {
    if (connected) client.destroy()
    else join(client, others)
  })
  upstream.on('connect', () => {
    connected = true
    upstream.on('close', () => client.destroy())
    client.on('close', () => upstream.destroy())
    client.pipe(upstream).pipe(client)
  })
}
