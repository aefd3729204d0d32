import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import process from 'node:process'
import {
  call,
  DATA,
  DEFAULT_WINDOW_BYTES,
  dueAnswer,
  END_STREAM,
  FrameReader,
  grantedBytes,
  HEADERS,
  MESSAGE_PREFIX_BYTES,
  preface,
  requestHeaders,
} from './grpc-frames.ts'

/** What is asked, and where. */
export interface GrpcTarget {
  readonly port: number
  /** `/package.Service/Method`. */
  readonly path: string
  /** The next message; it is sent before the next is asked for. */
  readonly next: () => Uint8Array
  /** Whether a message is the answer that counts. Any other, and any call without one, fails the benchmark. */
  readonly accepts: (message: Buffer) => boolean
}

/** How long, and how hard. */
export type GrpcEffort =
  /** As many calls under way at once, each followed by the next. */
  | { readonly inFlight: number; readonly durationMs: number }
  /**
   * As many calls a second, however long the answers take: each tick, what is due since the last one. A call's latency begins then, also
   * when it has to wait because so many are under way.
   */
  | { readonly perSecond: number; readonly durationMs: number }
  /** As many calls in all, so many at once. */
  | { readonly inFlight: number; readonly calls: number }

/** How it went. */
export interface GrpcLoad {
  readonly latenciesMs: number[]
  readonly durationMs: number
  /** CPU that this process used, as a share of one core: near 1, the generator was what was measured. */
  readonly generatorShare: number
  /** Of a steady rate, how long the generator itself was kept from its core: no call was due then. */
  readonly stoodStillMs: number
}

/** How often a steady rate is looked after. */
const TICK_MS = 1
/** After a longer time than this between two ticks, no more is due than of so much: a generator that stood still is no burst of calls. */
const BURST_MAX_MS = 3
/** Of a connection's calls, no more at once: fewer than the servers here allow. */
const AT_ONCE_MAX = 1000
/** A call is sent once there is room for so much; no message may be longer. */
const MESSAGE_BYTES_MAX = 1024

/**
 * Asks over one connection. Speaks just enough HTTP/2 (no compression of headers, no priorities) to cost far less than what it
 * measures; a client library costs as much as the server.
 */
export async function grpcLoad(target: GrpcTarget, effort: GrpcEffort): Promise<GrpcLoad> {
  const socket = connect({ port: target.port, host: '127.0.0.1', noDelay: true })
  await once(socket, 'connect')
  const before = process.cpuUsage()
  const beganMs = performance.now()
  try {
    const run = new Run(socket, target, effort, beganMs)
    await run.done
    const { user, system } = process.cpuUsage(before)
    const durationMs = performance.now() - beganMs
    return {
      latenciesMs: run.latenciesMs,
      durationMs,
      generatorShare: (user + system) / 1000 / durationMs,
      stoodStillMs: run.stoodStillMs,
    }
  } finally {
    socket.destroy()
  }
}

class Run {
  readonly latenciesMs: number[] = []
  stoodStillMs = 0
  readonly done: Promise<void>
  readonly #socket: Socket
  readonly #target: GrpcTarget
  readonly #effort: GrpcEffort
  readonly #head: Buffer
  readonly #beganMs: number
  #tickedMs: number
  /** Calls of a steady rate that are due and not yet sent, by when they were due; what is before #firstDue is sent. */
  #waitingMs: number[] = []
  #firstDue = 0
  /** What is due of a call by now, in calls. */
  #fraction = 0
  readonly #settled = Promise.withResolvers<void>()
  readonly #dueMs = new Map<number, number>()
  readonly #answered = new Set<number>()
  #nextStream = 1
  #sent = 0
  /** What the server takes of messages before it grants more (RFC 9113, section 5.2). */
  #window = DEFAULT_WINDOW_BYTES
  readonly #frames = new FrameReader((...parts) => this.#frame(...parts))
  #timer: NodeJS.Timeout | undefined

  constructor(socket: Socket, target: GrpcTarget, effort: GrpcEffort, beganMs: number) {
    this.#socket = socket
    this.#target = target
    this.#effort = effort
    this.#beganMs = beganMs
    this.#tickedMs = beganMs
    this.#head = requestHeaders(target.path)
    this.done = this.#settled.promise.finally(() => clearInterval(this.#timer))
    socket.on('error', this.#settled.reject)
    socket.on('close', () => this.#settled.reject(new Error('the server closed the connection')))
    socket.on('data', (chunk) => {
      try {
        this.#frames.push(chunk)
        this.#send()
      } catch (error) {
        this.#settled.reject(error)
      }
    })
    socket.write(preface())
    if ('perSecond' in effort) this.#timer = setInterval(() => this.#tick(effort.perSecond), TICK_MS)
    this.#send()
  }

  #tick(perSecond: number): void {
    const nowMs = performance.now()
    const passedMs = nowMs - this.#tickedMs
    this.#tickedMs = nowMs
    this.stoodStillMs += Math.max(0, passedMs - BURST_MAX_MS)
    if (!this.#isOver(nowMs)) this.#fraction += (Math.min(passedMs, BURST_MAX_MS) * perSecond) / 1000
    for (; this.#fraction >= 1; this.#fraction--) this.#waitingMs.push(nowMs)
    this.#send()
  }

  /** Sends what is due. */
  #send(): void {
    const nowMs = performance.now()
    const frames: Buffer[] = []
    for (let dueMs = this.#nextDueMs(nowMs); dueMs !== undefined; dueMs = this.#nextDueMs(nowMs)) {
      this.#sent++
      const stream = this.#nextStream
      this.#nextStream += 2
      this.#dueMs.set(stream, dueMs)
      const message = this.#target.next()
      if (message.length + MESSAGE_PREFIX_BYTES > MESSAGE_BYTES_MAX) throw new Error('a message is too long')
      this.#window -= MESSAGE_PREFIX_BYTES + message.length
      frames.push(call(this.#head, message, stream))
    }
    if (frames.length > 0) this.#socket.write(frames.length === 1 ? (frames[0] ?? '') : Buffer.concat(frames))
    else if (this.#dueMs.size === 0 && this.#isOver(nowMs)) this.#settled.resolve()
  }

  /** When the call was due that may be sent now, if any. */
  #nextDueMs(nowMs: number): number | undefined {
    if (this.#dueMs.size >= AT_ONCE_MAX || this.#window < MESSAGE_BYTES_MAX) return undefined
    if ('inFlight' in this.#effort)
      return this.#dueMs.size < this.#effort.inFlight && !this.#isOver(nowMs) ? nowMs : undefined
    const dueMs = this.#waitingMs[this.#firstDue]
    if (dueMs !== undefined) this.#firstDue++
    else {
      this.#waitingMs = []
      this.#firstDue = 0
    }
    return dueMs
  }

  #isOver(nowMs: number): boolean {
    if ('calls' in this.#effort) return this.#sent >= this.#effort.calls
    return nowMs - this.#beganMs >= this.#effort.durationMs
  }

  #frame(type: number, flags: number, stream: number, payload: Buffer): void {
    if (type === DATA && payload.length > 0) {
      if (!this.#target.accepts(payload.subarray(MESSAGE_PREFIX_BYTES))) throw new Error('an answer does not count')
      this.#answered.add(stream)
    }
    if ((type === HEADERS || type === DATA) && (flags & END_STREAM) !== 0) this.#end(stream)
    if (stream === 0) this.#window += grantedBytes(type, payload)
    const due = dueAnswer(type, flags, payload)
    if (due) this.#socket.write(due)
  }

  #end(stream: number): void {
    const dueMs = this.#dueMs.get(stream)
    if (dueMs === undefined || !this.#answered.delete(stream)) throw new Error('a call ended without an answer')
    this.#dueMs.delete(stream)
    this.latenciesMs.push(performance.now() - dueMs)
  }
}
