import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { Socket } from 'node:net'
import { parseAddress } from '@tollward/contracts'
import type { FlowRecord } from '@tollward/libbpf'

/** Node tells of each socket that this process opens; those it accepts are told elsewhere. */
const OPENED = 'net.client.socket'
const TCP = 6
/** The last packets of a closed connection are drained after it was closed. */
const FORGET_AFTER_MS = 5000

/**
 * The connections that this process itself opens: to the bus, whichever server it is and however often it reconnects. What
 * they carry must not be published, as publishing it would be traffic to publish. Create it before the bus.
 */
export class OwnConnections implements Disposable {
  readonly #keys = new Map<string, number>()
  readonly #timers = new Set<NodeJS.Timeout>()

  constructor() {
    subscribe(OPENED, this.#onSocket)
  }

  /** Whether the flow is of such a connection, in either direction. */
  has({ protocol, source, sourcePort, destination, destinationPort }: FlowRecord): boolean {
    if (protocol !== TCP || this.#keys.size === 0) return false
    const from = endpoint(source, sourcePort)
    const to = endpoint(destination, destinationPort)
    return this.#keys.has(from + to) || this.#keys.has(to + from)
  }

  [Symbol.dispose](): void {
    unsubscribe(OPENED, this.#onSocket)
    for (const timer of this.#timers) clearTimeout(timer)
  }

  readonly #onSocket = (message: unknown): void => {
    const { socket } = message as { socket: Socket }
    socket.once('connect', () => {
      const key = keyOf(socket)
      if (key === undefined) return
      this.#keys.set(key, (this.#keys.get(key) ?? 0) + 1)
      socket.once('close', () => this.#forgetLater(key))
    })
  }

  #forgetLater(key: string): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer)
      const uses = (this.#keys.get(key) ?? 1) - 1
      if (uses > 0) this.#keys.set(key, uses)
      else this.#keys.delete(key)
    }, FORGET_AFTER_MS)
    this.#timers.add(timer.unref())
  }
}

function keyOf({ localAddress, localPort, remoteAddress, remotePort }: Socket): string | undefined {
  const local = parseAddress(localAddress ?? '')
  const remote = parseAddress(remoteAddress ?? '')
  if (!local || !remote || localPort === undefined || remotePort === undefined) return undefined
  return endpoint(local, localPort) + endpoint(remote, remotePort)
}

function endpoint(address: Uint8Array, port: number): string {
  return `${Buffer.from(address.buffer, address.byteOffset, address.length).toString('latin1')}${port}/`
}
