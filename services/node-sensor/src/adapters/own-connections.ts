import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { Socket } from 'node:net'
import { parseAddress } from '@tollward/contracts'
import { FLOW_KEY } from '@tollward/libbpf'

/** Node tells of each socket that this process opens; those it accepts are told elsewhere. */
const OPENED = 'net.client.socket'
const TCP = 6
const ADDRESS_BYTES = 16
/** The last packets of a closed connection are drained after it was closed. */
const FORGET_AFTER_MS = 5000

/**
 * The connections that this process itself opens: to the bus, whichever server it is and however often it reconnects. What
 * they carry must not be published, as publishing it would be traffic to publish. Create it before the bus.
 */
export class OwnConnections implements Disposable {
  readonly #keys = new Map<string, number>()
  /** Local ports of those connections, and how many use each. */
  readonly #ports = new Map<number, number>()
  readonly #timers = new Set<NodeJS.Timeout>()

  constructor() {
    subscribe(OPENED, this.#onSocket)
  }

  /** Whether the flow with this key is of such a connection, in either direction. */
  has(keys: Buffer, at: number): boolean {
    if (this.#keys.size === 0 || keys.readUInt8(at + FLOW_KEY.protocol) !== TCP) return false
    const sourcePort = keys.readUInt16LE(at + FLOW_KEY.sourcePort)
    const destinationPort = keys.readUInt16LE(at + FLOW_KEY.destinationPort)
    // The ports tell nearly all others apart, without a text for each.
    if (!this.#ports.has(sourcePort) && !this.#ports.has(destinationPort)) return false
    const from = endpoint(keys.subarray(at + FLOW_KEY.source, at + FLOW_KEY.source + ADDRESS_BYTES), sourcePort)
    const destination = keys.subarray(at + FLOW_KEY.destination, at + FLOW_KEY.destination + ADDRESS_BYTES)
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
      const { localPort } = socket
      if (key === undefined || localPort === undefined) return
      addUse(this.#keys, key)
      addUse(this.#ports, localPort)
      socket.once('close', () => this.#forgetLater(key, localPort))
    })
  }

  #forgetLater(key: string, localPort: number): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer)
      takeUse(this.#keys, key)
      takeUse(this.#ports, localPort)
    }, FORGET_AFTER_MS)
    this.#timers.add(timer.unref())
  }
}

function addUse<Key>(uses: Map<Key, number>, key: Key): void {
  uses.set(key, (uses.get(key) ?? 0) + 1)
}

function takeUse<Key>(uses: Map<Key, number>, key: Key): void {
  const left = (uses.get(key) ?? 1) - 1
  if (left > 0) uses.set(key, left)
  else uses.delete(key)
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
