import { setTimeout as delay, setImmediate as othersFirst } from 'node:timers/promises'
import { type AddressRange, rangeContains } from '@tollward/contracts'
import { bootTimeNs, CALL_COUNTER, type CallCounterName, type Chunk } from '@tollward/libbpf'
import { aborted } from '@tollward/runtime'
import type { Logger } from 'pino'
import { CallAssembly, type CallOwner } from '../domain/call-assembly.ts'
import type { Metrics } from '../metrics.ts'
import type { Outbox } from './batch-publisher.ts'
import { type CallKernel, type CallSettings, loadCalls } from './call-kernel.ts'
import { CallPublisher } from './call-publisher.ts'
import { CallRing } from './call-ring.ts'
import { type CallTarget, CallTargets, systemLibraries, type UnsupportedTarget } from './call-targets.ts'
import type { Capability } from './capabilities.ts'
import { objectFile } from './object-file.ts'
import { Owners } from './owners.ts'

/** A ring of 8 MiB holds two thousand full reads: this often it is looked at, whether it says so or not. */
const INTERVAL_MS = 20
/** Some milliseconds of work, after which whatever else waits has its turn: a block must not wait for calls. */
const TURN_CHUNKS = 512
/** Calls are published this often at least. */
const FLUSH_MS = 200

interface CaptureOptions {
  readonly settings: CallSettings
  /** Only calls of connections with an end in one of these are looked at; none: all. */
  readonly ranges: readonly AddressRange[]
  readonly node: string
  readonly outbox: Outbox
  readonly metrics: Metrics
  readonly log: Logger
}

/**
 * API calls as they pass through TLS libraries and sockets of this node: captured in the kernel, assembled here, published. It is
 * made before the outbox runs. What it probes lives and ends with this process.
 */
export class CallCapture {
  readonly #options: CaptureOptions
  readonly #publisher: CallPublisher
  #kernel: CallKernel | undefined
  #targets: CallTargets | undefined
  #failure: string | undefined

  constructor(options: CaptureOptions) {
    this.#options = options
    this.#publisher = new CallPublisher(options)
  }

  /** Libraries and programs whose calls are read. */
  get targets(): readonly CallTarget[] {
    return this.#targets?.targets ?? []
  }

  /** Programs in use whose calls inside TLS cannot be read. */
  get unsupported(): readonly UnsupportedTarget[] {
    return this.#targets?.unsupported ?? []
  }

  /** Files with TLS in them, by what became of them. */
  targetCounts(): Record<string, number> {
    const { targets, unsupported } = this
    return { probed: targets.length, unsupported: unsupported.length, refused: this.#targets?.refused ?? 0 }
  }

  /** Why calls are not captured, or do not get to their stream; undefined if they do. */
  fault(): string | undefined {
    return this.#failure ?? this.#publisher.fault()
  }

  /** What became of reading calls, as one of the things that a kernel may offer. */
  capability(): Capability {
    const on = this.#failure === undefined
    return { name: 'API calls', on, why: this.#failure ?? 'read inside TLS and, at the configured ports, in the clear' }
  }

  /** What the kernel counts of reads and writes. */
  counts(): Record<string, number> {
    const kernel = this.#kernel
    if (!kernel) return {}
    const names = Object.keys(CALL_COUNTER) as CallCounterName[]
    return Object.fromEntries(names.map((name) => [name, Number(kernel.count(name))]))
  }

  /** Captures until the signal is aborted. If this kernel cannot, that is said, and everything else goes on. */
  async run(signal: AbortSignal): Promise<void> {
    const { settings, ranges, metrics, log } = this.#options
    try {
      await using resources = new AsyncDisposableStack()
      const kernel = resources.use(loadCalls(await objectFile(undefined, 'calls'), settings, log))
      const targets = resources.use(new CallTargets({ kernel, libraries: systemLibraries(), log }))
      const ring = resources.use(new CallRing(kernel.object))
      const owners = resources.use(new Owners())
      resources.defer(() => {
        this.#kernel = undefined
      })
      this.#kernel = kernel
      this.#targets = targets
      const ownerOf = ({ pid, comm, cgroupId }: Chunk['owner']) =>
        owners.describe({ processId: pid, processName: comm, cgroupId })
      const publisher = this.#publisher
      await Promise.all([targets.run(signal), readCalls({ ring, ranges, publisher, ownerOf, metrics, signal })])
    } catch (error) {
      log.warn({ err: error }, 'calls are not captured')
      this.#failure = `calls are not captured: ${error instanceof Error ? error.message : String(error)}`
      await aborted(signal)
    }
  }
}

/** What the kernel captured, as CallRing reads it. */
interface ChunkSource {
  read(onChunk: (chunk: Chunk) => void, limit?: number): number
}

interface ReadOptions {
  readonly ring: ChunkSource
  readonly ranges: readonly AddressRange[]
  readonly publisher: CallPublisher
  /** What is known of a process beside what the kernel told of it. */
  readonly ownerOf: (owner: Chunk['owner']) => CallOwner
  readonly metrics: Metrics
  readonly signal: AbortSignal
}

/** Reads what the kernel captured, makes calls of it and hands them to the publisher, until the signal is aborted. */
async function readCalls({ ring, ranges, publisher, ownerOf, metrics, signal }: ReadOptions): Promise<void> {
  const lost = new Map<string, number>()
  const flush = () => {
    assembly.forgetSilent(bootTimeNs())
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
  const push = (chunk: Chunk) => {
    if (isWithin(ranges, chunk)) assembly.push(chunk)
    else metrics.callsElsewhere.inc()
  }
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

function isWithin(ranges: readonly AddressRange[], { addresses }: Chunk): boolean {
  if (ranges.length === 0) return true
  if (!addresses) return false
  return ranges.some((range) => rangeContains(range, addresses.local) || rangeContains(range, addresses.peer))
}
