import { setTimeout as delay, setImmediate as othersFirst } from 'node:timers/promises'
import { bootTimeNs, type Chunk } from '@tollward/libbpf'
import { CallAssembly, type CallOwner } from '../domain/call-assembly.ts'
import type { Metrics } from '../metrics.ts'
import type { CallPublisher } from './call-publisher.ts'

/** A ring of 8 MiB holds two thousand full reads: this often it is looked at, whether it says so or not. */
const INTERVAL_MS = 20
/** Some milliseconds of work, after which whatever else waits has its turn: a block must not wait for calls. */
const TURN_CHUNKS = 512
/** Calls are published this often at least. */
const FLUSH_MS = 200

/** What the kernel captured, as CallRing reads it. */
interface ChunkSource {
  read(onChunk: (chunk: Chunk) => void, limit?: number): number
}

interface CallsOptions {
  readonly ring: ChunkSource
  readonly publisher: CallPublisher
  /** What is known of a process beside what the kernel told of it. */
  readonly ownerOf: (owner: Chunk['owner']) => CallOwner
  readonly metrics: Metrics
  readonly signal: AbortSignal
}

/** Reads what the kernel captured, makes calls of it and hands them to the publisher, until the signal is aborted. */
export async function readCalls({ ring, publisher, ownerOf, metrics, signal }: CallsOptions): Promise<void> {
  const lost = new Map<string, number>()
  const flush = () => {
    for (const [reason, calls] of lost) publisher.addLost(calls, reason)
    lost.clear()
    publisher.flush()
  }
  const assembly = new CallAssembly({
    onCall: (call) => publisher.add(call),
    onLost: (reason) => void lost.set(reason, (lost.get(reason) ?? 0) + 1),
    ownerOf,
    bootedAtMs: () => Date.now() - Number(bootTimeNs() / 1_000_000n),
  })
  const push = (chunk: Chunk) => assembly.push(chunk)
  let flushedMs = performance.now()
  while (!signal.aborted) {
    const chunks = ring.read(push, TURN_CHUNKS)
    metrics.callConnections.set(assembly.connections)
    if (performance.now() - flushedMs >= FLUSH_MS) {
      flush()
      flushedMs = performance.now()
    }
    if (chunks >= TURN_CHUNKS) await othersFirst()
    else await delay(INTERVAL_MS, undefined, { signal }).catch(() => undefined)
  }
  assembly.close()
  flush()
}
