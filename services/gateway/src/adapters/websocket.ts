import { request as httpRequest, type IncomingMessage, STATUS_CODES } from 'node:http'
import { request as httpsRequest } from 'node:https'
import type { Socket } from 'node:net'
import type { Admission, Decision, Reason, Rejection, RequestFacts } from '@tollward/decision'
import { accessOf } from '../domain/access-line.ts'
import { downstreamFields, hostOf, type ReceivedRequest, requestFacts, upstreamFields } from '../domain/forwarding.ts'
import { type ClientNames, connectionOf } from './exchange.ts'
import type { ProxyContext } from './proxy.ts'

export interface WebSocketOptions extends ProxyContext {
  readonly upstreamUrl: string
  readonly upstreamTimeoutMs: number
  readonly names: ClientNames
  readonly webSocketsMax: number
  readonly webSocketIdleMs: number
  readonly webSocketLifetimeMs: number
}

/** WebSockets (RFC 6455) that pass through. */
export interface WebSockets {
  onUpgrade(request: IncomingMessage, socket: Socket, head: Buffer): void
  /** Ends all of them. */
  end(): void
}

/** After its end a WebSocket has so long to send what is left. */
const LINGER_MS = 1000

/** Those that are open, and whether there may be no more: the gateway ends. */
type Opened = Set<WebSocket> & { closed: boolean }

/** Decides about WebSockets like about any request, joins admitted ones with the API's, and looks after them. */
export function webSockets(options: WebSocketOptions): WebSockets {
  const open: Opened = Object.assign(new Set<WebSocket>(), { closed: false })
  return {
    onUpgrade: (request, socket, head) => new WebSocket(options, open, request, socket, head).decide(),
    end: () => {
      open.closed = true
      for (const one of open) one.end('stopping')
    },
  }
}

/** One that a client asks for, and what becomes of it. */
class WebSocket {
  readonly #options: WebSocketOptions
  readonly #open: Opened
  readonly #request: ReceivedRequest
  readonly #socket: Socket
  readonly #head: Buffer
  readonly #beganMs = performance.now()
  readonly #askedAtMs = Date.now()
  readonly #resources = new DisposableStack()
  #decision: Decision | undefined
  #upstream: Socket | undefined
  #status = 0
  #ended = false

  constructor(options: WebSocketOptions, open: Opened, message: IncomingMessage, socket: Socket, head: Buffer) {
    const { rawHeaders: fields, method = '', url: target = '' } = message
    this.#options = options
    this.#open = open
    this.#request = { method, target, fields, ...connectionOf(socket, options.names) }
    this.#socket = socket
    this.#head = head
    // What goes wrong with a socket closes it, and that is heard.
    socket.on('error', () => {})
    socket.once('close', () => this.end('closed'))
  }

  decide(): void {
    const { decider, trustedProxies } = this.#options
    const facts = requestFacts(this.#request, trustedProxies)
    if (!facts) {
      this.#refuse(decider.refuse('malformed-request'))
      return
    }
    const decision = decider.decide(facts)
    if (decision instanceof Promise) void decision.then((made) => this.#conclude(made, facts))
    else this.#conclude(decision, facts)
  }

  #conclude(decision: Decision, facts: RequestFacts): void {
    this.#decision = decision
    if (!decision.admitted) this.#refuse(decision)
    else if (this.#open.closed || this.#open.size >= this.#options.webSocketsMax) this.#fail('too-busy')
    else if (!this.#ended) this.#ask(decision, facts)
  }

  /** Asks the API for a WebSocket, on a connection of its own. */
  #ask(admission: Admission, facts: RequestFacts): void {
    const { decider, log, upstreamUrl, upstreamTimeoutMs, trustedProxies } = this.#options
    const { peer, scheme, fields } = this.#request
    const keepFor = trustedProxies.length > 0
    const forwarded = { peer, scheme, host: hostOf(this.#request) ?? '', keepFor, bodiless: true }
    const byToken = admission.metadata.client !== undefined
    this.#open.add(this)
    this.#resources.defer(() => this.#open.delete(this))
    this.#resources.use(decider.watch({ facts, sinceMs: this.#askedAtMs, byToken }, (reason) => this.end(reason)))
    const send = upstreamUrl.startsWith('https:') ? httpsRequest : httpRequest
    const sent = send(upstreamUrl, {
      path: admission.target.path + admission.target.query,
      headers: [...upstreamFields(fields, admission, forwarded), 'connection', 'Upgrade', 'upgrade', 'websocket'],
      setHost: false,
      agent: false,
      timeout: upstreamTimeoutMs,
    })
    this.#resources.defer(() => this.#upstream ?? sent.destroy())
    sent.on('timeout', () => this.#fail('upstream-timeout'))
    sent.on('error', (error) => {
      if (!this.#ended) log.warn({ err: error, decision: admission.id }, 'websocket not forwarded')
      this.#fail('upstream-failed')
    })
    sent.on('response', (response) => this.#passRefusal(response, admission))
    sent.on('upgrade', (response, upstream, head) => this.#join(response, upstream, head, admission))
    sent.end()
  }

  #join(response: IncomingMessage, upstream: Socket, head: Buffer, admission: Admission): void {
    upstream.on('error', () => {})
    if (this.#ended || response.headers.upgrade?.toLowerCase() !== 'websocket') {
      upstream.destroy()
      this.#fail('upstream-failed')
      return
    }
    const { metrics, webSocketIdleMs, webSocketLifetimeMs } = this.#options
    const socket = this.#socket
    this.#upstream = upstream
    metrics.webSockets.inc()
    this.#resources.defer(() => metrics.webSockets.dec())
    this.#begin(101, [
      ...downstreamFields(response.rawHeaders, admission),
      'connection',
      'Upgrade',
      'upgrade',
      'websocket',
    ])
    upstream.once('close', () => this.end('closed'))
    const lifetime = setTimeout(() => this.end('lifetime'), webSocketLifetimeMs)
    this.#resources.defer(() => clearTimeout(lifetime))
    socket.setTimeout(0)
    // Bytes in either direction pass here.
    upstream.setTimeout(webSocketIdleMs, () => this.end('idle'))
    if (head.length > 0) socket.write(head)
    if (this.#head.length > 0) upstream.write(this.#head)
    socket.pipe(upstream).pipe(socket)
  }

  /** The API doesn't want it: its answer goes to the client, and its end is that of the connection. */
  #passRefusal(response: IncomingMessage, admission: Admission): void {
    const status = response.statusCode ?? 0
    this.#begin(status, [...downstreamFields(response.rawHeaders, admission), 'connection', 'close'])
    response.once('error', () => this.#socket.destroy())
    response.pipe(this.#socket)
  }

  #fail(reason: Reason): void {
    if (this.#ended) return
    if (this.#status === 0) this.#refuse(this.#options.decider.refuse(reason))
    else this.end(reason)
  }

  /** The whole problem, as to any other request. */
  #refuse(rejection: Rejection): void {
    this.#decision = rejection
    const { status, headers, body } = rejection
    this.#begin(status, [...headers.flat(), 'content-length', String(Buffer.byteLength(body)), 'connection', 'close'])
    this.#socket.write(body)
    this.end('refused')
  }

  #begin(status: number, fields: readonly string[]): void {
    this.#status = status
    let head = `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}\r\n`
    for (let index = 0; index < fields.length; index += 2) head += `${fields[index]}: ${fields[index + 1]}\r\n`
    this.#socket.write(`${head}\r\n`, 'latin1')
  }

  /** Ends both sides, once. */
  end(reason: string): void {
    if (this.#ended) return
    this.#ended = true
    const { metrics, accessLog } = this.#options
    const upstream = this.#upstream
    if (upstream) {
      metrics.webSocketEnds.inc({ reason })
      this.#socket.unpipe(upstream)
      upstream.unpipe(this.#socket)
    }
    for (const side of upstream ? [this.#socket, upstream] : [this.#socket]) {
      side.end()
      setTimeout(() => side.destroy(), LINGER_MS).unref()
    }
    this.#resources.dispose()
    const durationMs = performance.now() - this.#beganMs
    accessLog.write(() =>
      accessOf({ ...this.#request, version: '1.1' }, this.#decision, {
        atMs: this.#askedAtMs,
        durationMs,
        status: this.#status,
        bytesSent: upstream?.bytesRead ?? 0,
        bytesReceived: upstream?.bytesWritten ?? 0,
        complete: true,
      }),
    )
  }
}
