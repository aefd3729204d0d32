import { once } from 'node:events'
import { connect, type Socket } from 'node:net'

const CONNECT_MAX_MS = 300

/** Tries one port after another from an address, as a scanner does. Returns how many there were. */
export async function scan(from: string, to: string, firstPort: number, ports: number): Promise<number> {
  const tries = Array.from({ length: ports }, (_, index) => tryPort(from, to, firstPort + index))
  return (await Promise.all(tries)).length
}

/** What a flood met. */
export interface Flood {
  /** Connections that the other side's kernel completed. */
  readonly connected: number
  /** From the first connection to the first of which nothing was heard any more; undefined if all were answered. */
  readonly silentAfterMs: number | undefined
}

/**
 * Opens connections as fast as it can and closes them at once, until none is answered any more or there were enough: bounded in
 * number, and so in time.
 */
export async function flood(
  from: string,
  to: string,
  port: number,
  connectionsMax: number,
  atOnce: number,
): Promise<Flood> {
  const startMs = performance.now()
  let connected = 0
  let silentAfterMs: number | undefined
  let begun = 0
  const worker = async () => {
    while (silentAfterMs === undefined && begun < connectionsMax) {
      begun += 1
      const triedMs = performance.now()
      if (await tryPort(from, to, port)) connected += 1
      else silentAfterMs ??= triedMs - startMs
    }
  }
  await Promise.all(Array.from({ length: atOnce }, worker))
  return { connected, silentAfterMs }
}

/** Whether a connection was completed: a refused one was answered too, but is none. */
export async function tryPort(from: string, to: string, port: number): Promise<boolean> {
  let socket: Socket | undefined
  try {
    socket = connect({ host: to, port, localAddress: from })
    await once(socket, 'connect', { signal: AbortSignal.timeout(CONNECT_MAX_MS) })
    return true
  } catch {
    // Refused, or nothing came back: either is what the caller counts.
    return false
  } finally {
    socket?.destroy()
  }
}
