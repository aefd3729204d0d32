import { once } from 'node:events'
import { connect, type Socket } from 'node:net'

const CONNECT_MAX_MS = 300

/** Longer than any pause of a server that is only busy. */
const SILENCE_MS = 1000

/** Tries one port after another from an address, as a scanner does. Returns how many there were. */
export async function scan(from: string, to: string, firstPort: number, ports: number): Promise<number> {
  const tries = Array.from({ length: ports }, (_, index) => tryPort(from, to, firstPort + index))
  return (await Promise.all(tries)).length
}

/** What a flood met. */
export interface Flood {
  /** Connections that the other side's kernel completed. */
  readonly connected: number
  /** From the first try to the last connection, after which there was silence; undefined if it could go on to its end. */
  readonly silentAfterMs: number | undefined
}

/**
 * Opens connections as fast as it can and closes them at once, until none is completed any more for a while or there were
 * enough: bounded in number, and so in time. A single unanswered try is no silence: a busy server drops some too.
 */
export async function flood(
  from: string,
  to: string,
  port: number,
  connectionsMax: number,
  atOnce: number,
): Promise<Flood> {
  const startMs = performance.now()
  let lastMs = startMs
  let connected = 0
  let begun = 0
  const isSilent = () => performance.now() - lastMs > SILENCE_MS
  const worker = async () => {
    while (!isSilent() && begun < connectionsMax) {
      begun += 1
      if (!(await tryPort(from, to, port))) continue
      connected += 1
      lastMs = performance.now()
    }
  }
  await Promise.all(Array.from({ length: atOnce }, worker))
  return { connected, silentAfterMs: isSilent() ? lastMs - startMs : undefined }
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
