import { connect, type Socket } from 'node:net'
import { connect as connectTls } from 'node:tls'

/** What is sent, and where. */
export interface Target {
  readonly port: number
  /** The next request, whole: line, headers and body. */
  readonly next: () => Buffer
  /** Whether an answer, headers and body, is the one that counts. Any other fails the benchmark. */
  readonly accepts: (answer: Buffer) => boolean
  /** Whether to speak TLS, with whoever is there. */
  readonly tls?: boolean
}

/** How one target did. */
export interface Load {
  readonly latenciesMs: number[]
  readonly durationMs: number
  /** CPU that this process used, as a share of one core: near 1, the generator was what was measured. */
  readonly generatorShare: number
}

const HEAD_END = Buffer.from('\r\n\r\n')

/**
 * Keeps `connections` requests under way for a time, each connection sending its next when its last is answered, and returns
 * the latency of each. Speaks just enough HTTP/1.1 (keep-alive, Content-Length) to cost far less than what it measures.
 */
export async function load(target: Target, connections: number, durationMs: number): Promise<Load> {
  const latenciesMs: number[] = []
  const before = process.cpuUsage()
  const beganMs = performance.now()
  const endMs = beganMs + durationMs
  await Promise.all(Array.from({ length: connections }, () => keepBusy(target, endMs, latenciesMs)))
  const { user, system } = process.cpuUsage(before)
  const tookMs = performance.now() - beganMs
  return { latenciesMs, durationMs: tookMs, generatorShare: (user + system) / 1000 / tookMs }
}

/** As `load`, but with requests that are due at a steady pace, whether the last were answered in time or not. */
export async function pacedLoad(
  target: Target,
  { connections, durationMs, perSecond }: { connections: number; durationMs: number; perSecond: number },
): Promise<Load> {
  const latenciesMs: number[] = []
  const before = process.cpuUsage()
  const beganMs = performance.now()
  const everyMs = (connections * 1000) / perSecond
  const keepPace = (index: number) => {
    let dueMs = beganMs + (index * everyMs) / connections
    const pauseMs = () => {
      dueMs += everyMs
      return dueMs - performance.now()
    }
    const onLatency = (latencyMs: number) => void latenciesMs.push(latencyMs)
    return exchange(target, () => performance.now() - beganMs < durationMs, { onLatency, pauseMs })
  }
  await Promise.all(Array.from({ length: connections }, (_, index) => keepPace(index)))
  const { user, system } = process.cpuUsage(before)
  const tookMs = performance.now() - beganMs
  return { latenciesMs, durationMs: tookMs, generatorShare: (user + system) / 1000 / tookMs }
}

/** Sends that many requests, `connections` at once, and hands each answer on. */
export async function sendAll(
  target: Target,
  connections: number,
  requests: number,
  onAnswer: (answer: Buffer) => void,
): Promise<void> {
  let left = requests
  const counted: Target = {
    ...target,
    accepts: (answer) => {
      onAnswer(answer)
      return target.accepts(answer)
    },
  }
  const worker = () => exchange(counted, () => left-- > 0)
  await Promise.all(Array.from({ length: connections }, worker))
}

function keepBusy(target: Target, endMs: number, latenciesMs: number[]): Promise<void> {
  // Each connection asks once at least, however short the time.
  let sent = 0
  return exchange(target, () => sent++ === 0 || performance.now() < endMs, {
    onLatency: (latencyMs) => void latenciesMs.push(latencyMs),
  })
}

/** One connection, as long as `goOn` says so before each request, with a pause after each answer if there shall be one. */
export function exchange(
  target: Target,
  goOn: () => boolean,
  {
    onLatency = () => {},
    pauseMs = 0,
  }: { onLatency?: (latencyMs: number) => void; pauseMs?: number | (() => number) } = {},
): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const to = { host: '127.0.0.1', port: target.port, noDelay: true }
  const socket: Socket = target.tls ? connectTls({ ...to, rejectUnauthorized: false }) : connect(to)
  let received: Buffer = Buffer.alloc(0)
  let sentMs = 0
  const send = () => {
    if (!goOn()) {
      resolve()
      socket.destroy()
      return
    }
    sentMs = performance.now()
    socket.write(target.next())
  }
  socket.on(target.tls ? 'secureConnect' : 'connect', send)
  socket.on('data', (chunk: Buffer) => {
    received = received.length === 0 ? chunk : Buffer.concat([received, chunk])
    const complete = isComplete(received)
    if (complete === false) return
    onLatency(performance.now() - sentMs)
    if (complete !== true || !target.accepts(received)) {
      reject(new Error(`an answer that should not come: ${received.toString('latin1')}`))
      socket.destroy()
      return
    }
    received = Buffer.alloc(0)
    const waitMs = typeof pauseMs === 'number' ? pauseMs : pauseMs()
    if (waitMs > 0) setTimeout(send, waitMs)
    else send()
  })
  socket.on('error', reject)
  socket.on('close', () => reject(new Error('the server closed the connection')))
  return promise
}

/** Whether the whole answer is there; undefined: it does not say how long it is. */
function isComplete(bytes: Buffer): boolean | undefined {
  const headEnd = bytes.indexOf(HEAD_END)
  if (headEnd < 0) return false
  const length = /\r\ncontent-length: (\d+)/i.exec(bytes.toString('latin1', 0, headEnd))?.[1]
  return length === undefined ? undefined : bytes.length >= headEnd + HEAD_END.length + Number(length)
}

/** A form post as a client of OAuth sends it, with client_secret_basic. */
export function formPost(
  port: number,
  path: string,
  credentials: { readonly clientId: string; readonly clientSecret: string },
  parameters: Record<string, string>,
): Buffer {
  const body = new URLSearchParams(parameters).toString()
  const basic = Buffer.from(`${credentials.clientId}:${credentials.clientSecret}`).toString('base64')
  const lines = [
    `POST ${path} HTTP/1.1`,
    `host: 127.0.0.1:${port}`,
    `authorization: Basic ${basic}`,
    'content-type: application/x-www-form-urlencoded',
    `content-length: ${Buffer.byteLength(body)}`,
    'accept: application/json',
  ]
  return Buffer.from(`${lines.join('\r\n')}\r\n\r\n${body}`)
}
