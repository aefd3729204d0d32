import { type Readable, Transform } from 'node:stream'
import type { AddressRange } from '@tollward/contracts'
import type { Admission, Decider, Decision, Reason, Rejection, RequestFacts } from '@tollward/decision'
import { toAppError } from '@tollward/errors'
import type { Logger } from 'pino'
import { accessOf } from '../domain/access-line.ts'
import {
  downstreamFields,
  downstreamTrailers,
  type FieldList,
  hostOf,
  requestFacts,
  upstreamFields,
  valuesOf,
} from '../domain/forwarding.ts'
import { grpcRefusal, isGrpc } from '../domain/grpc.ts'
import type { GatewayMetrics } from '../metrics.ts'
import type { AccessLog } from './access-log.ts'
import type { Exchange } from './exchange.ts'
import { type Upstream, type UpstreamCall, UpstreamFull, type UpstreamListener, UpstreamTimeout } from './upstream.ts'

/** What every request needs. */
export interface ProxyContext {
  readonly upstream: Upstream
  readonly bodyBytesMax: number
  /** Of a body so much is kept for the decision, where a rule asks for it. */
  readonly bodyDecisionBytesMax: number
  readonly trustedProxies: readonly AddressRange[]
  readonly decider: Decider
  readonly metrics: GatewayMetrics
  readonly accessLog: AccessLog
  readonly log: Logger
}

/** For the whole request with its body. */
export const REQUEST_TIMEOUT_MS = 300_000
/** A client that takes nothing of its answer for so long is given up. */
const STALLED_AFTER_MS = 60_000
/** Most requests are over before their caller could lose its right; those that last longer are watched over. */
const WATCHED_AFTER_MS = 1000

class BodyTooLarge extends Error {
  override readonly name = 'BodyTooLarge'
}

/** Decides about a request in process, and forwards it if it is admitted. */
export function pass(context: ProxyContext, exchange: Exchange): void {
  new Passage(context, exchange).decide()
}

/** One request on its way to the API, and the answer on its way back. */
class Passage implements UpstreamListener {
  readonly #context: ProxyContext
  readonly #exchange: Exchange
  readonly #isGrpc: boolean
  readonly #beganMs = performance.now()
  readonly #askedAtMs = Date.now()
  readonly #timers: { body?: NodeJS.Timeout; stalled?: NodeJS.Timeout; watched?: NodeJS.Timeout } = {}
  /** Of the body, what was read for the decision. */
  readonly #kept: Buffer[] = []
  #saidGoOn = false
  #watching: Disposable | undefined
  #decision: Decision | undefined
  #call: UpstreamCall | undefined
  #body: Transform | undefined
  #ended = false
  #closed = false
  #status = 0
  #bytesSent = 0
  #bytesReceived = 0
  #decidedMs = 0
  #upstreamMs: number | undefined

  constructor(context: ProxyContext, exchange: Exchange) {
    this.#context = context
    this.#exchange = exchange
    this.#isGrpc = exchange.version === '2.0' && isGrpc(exchange.request.fields)
    exchange.onClose((complete) => this.#close(complete))
  }

  decide(): void {
    const { decider, trustedProxies } = this.#context
    const { request, body, version } = this.#exchange
    // HTTP/1.1 has a limit of Node's own. Calls of gRPC may last.
    if (body && version === '2.0' && !this.#isGrpc) {
      this.#timers.body = setTimeout(() => this.#fail('request-timeout'), REQUEST_TIMEOUT_MS)
      body.once('end', () => clearTimeout(this.#timers.body))
    }
    const facts = requestFacts(request, trustedProxies)
    if (!facts) this.#refuse(decider.refuse('malformed-request'))
    else if ((!body && request.method === 'GET') || !decider.needsBody(facts)) this.#judge(facts)
    else if (body) this.#readBeginning(body, facts)
    else this.#judge({ ...facts, body: { bytes: new Uint8Array(), isWhole: true } })
  }

  #judge(facts: RequestFacts): void {
    const decision = this.#context.decider.decide(facts)
    if (decision instanceof Promise) void decision.then((made) => this.#conclude(made, facts))
    else this.#conclude(decision, facts)
  }

  /** Keeps a body, or the beginning of a long one, for the decision; what was kept goes on to the API like the rest. */
  #readBeginning(body: Readable, facts: RequestFacts): void {
    const { bodyDecisionBytesMax } = this.#context
    if (this.#exchange.expectsContinue) this.#exchange.goOn()
    this.#saidGoOn = true
    let bytes = 0
    const judge = (isWhole: boolean) => {
      body.pause().off('data', keep).off('end', whole)
      const kept = Buffer.concat(this.#kept)
      this.#judge({ ...facts, body: { bytes: isWhole ? kept : kept.subarray(0, bodyDecisionBytesMax), isWhole } })
    }
    const whole = () => judge(true)
    const keep = (chunk: Buffer) => {
      bytes += chunk.length
      this.#kept.push(chunk)
      if (bytes > bodyDecisionBytesMax) judge(false)
    }
    body.on('data', keep).once('end', whole)
  }

  #conclude(decision: Decision, facts: RequestFacts): void {
    this.#decidedMs = performance.now() - this.#beganMs
    if (this.#closed || this.#exchange.begun) this.#decision ??= decision
    else if (decision.admitted) this.#forward(decision, facts)
    else this.#refuse(decision)
  }

  #forward(admission: Admission, facts: RequestFacts): void {
    this.#decision = admission
    const { upstream, bodyBytesMax, trustedProxies } = this.#context
    const { request, body, expectsContinue } = this.#exchange
    this.#timers.watched = setTimeout(() => this.#watch(admission, facts), WATCHED_AFTER_MS)
    if (body && Number(valuesOf(request.fields, 'content-length')[0] ?? 0) > bodyBytesMax) {
      this.#fail('body-too-large')
      return
    }
    const { method, peer, scheme, fields } = request
    const forwarded = { peer, scheme, host: hostOf(request) ?? '', keepFor: trustedProxies.length > 0, bodiless: !body }
    if (expectsContinue && body && !this.#saidGoOn) this.#exchange.goOn()
    this.#body = body && this.#bounded(body, bodyBytesMax)
    const { path, query } = admission.target
    this.#call = upstream.send(
      {
        method,
        path: path + query,
        fields: upstreamFields(fields, admission, forwarded),
        body: this.#body,
        patient: this.#isGrpc,
      },
      this,
    )
    this.#exchange.onDrain(() => {
      clearTimeout(this.#timers.stalled)
      this.#call?.resume()
    })
  }

  /** What goes on for long ends when its caller may not be served any more. */
  #watch(admission: Admission, facts: RequestFacts): void {
    const byToken = admission.metadata.client !== undefined
    this.#watching = this.#context.decider.watch({ facts, sinceMs: this.#askedAtMs, byToken }, (reason) => {
      this.#fail(reason)
    })
  }

  onHint(fields: FieldList): void {
    if (!this.#exchange.begun) this.#exchange.hint(fields)
  }

  onHead(status: number, fields: FieldList, ends: boolean): void {
    this.#upstreamMs = performance.now() - this.#beganMs - this.#decidedMs
    this.#status = status
    const ours = this.#decision?.admitted ? this.#decision : { headers: [] }
    if (this.#closed) return
    try {
      this.#exchange.begin(status, downstreamFields(fields, ours), ends)
    } catch (error) {
      // The API says what no answer may hold.
      this.onFailure(toAppError(error))
    }
  }

  onPart(chunk: Uint8Array): void {
    this.#bytesSent += chunk.length
    if (this.#closed || this.#exchange.write(chunk)) return
    this.#call?.pause()
    this.#timers.stalled ??= setTimeout(() => this.#exchange.fail(), STALLED_AFTER_MS)
    this.#timers.stalled.refresh()
  }

  onEnd(trailers: FieldList): void {
    this.#ended = true
    if (this.#closed) return
    this.#exchange.end(downstreamTrailers(trailers))
    if (this.#exchange.body && !this.#exchange.body.readableEnded) this.#exchange.discard()
  }

  onFailure(error: Error): void {
    this.#ended = true
    if (this.#closed) return
    this.#context.log.warn({ err: error, decision: this.#decision?.id }, 'request not forwarded')
    this.#fail(failureOf(error))
  }

  /** Answers with a refusal of the gateway's own, or where an answer has begun already, breaks it off. */
  #fail(reason: Reason): void {
    this.#call?.abort()
    if (!this.#exchange.begun) {
      this.#refuse(this.#context.decider.refuse(reason))
      return
    }
    this.#context.metrics.brokenAnswers.inc({ by: WATCHED.has(reason) ? 'gateway' : 'api' })
    this.#exchange.fail()
  }

  #refuse(rejection: Rejection): void {
    this.#decision = rejection
    this.#ended = true
    const { body } = this.#exchange
    if (this.#isGrpc) {
      this.#status = 200
      this.#exchange.begin(200, grpcRefusal(rejection), true)
    } else {
      const { status, headers, body: text } = rejection
      const bytes = Buffer.from(text)
      this.#status = status
      const isHead = this.#exchange.request.method === 'HEAD'
      this.#exchange.begin(status, [...headers.flat(), 'content-length', String(bytes.length)], isHead)
      if (!isHead) {
        this.#bytesSent = bytes.length
        this.#exchange.write(bytes)
      }
      this.#exchange.end()
    }
    if (body && !body.readableEnded) this.#exchange.discard()
  }

  #close(complete: boolean): void {
    this.#closed = true
    clearTimeout(this.#timers.body)
    clearTimeout(this.#timers.stalled)
    clearTimeout(this.#timers.watched)
    this.#watching?.[Symbol.dispose]()
    if (!this.#ended) {
      if (this.#call) this.#context.metrics.brokenAnswers.inc({ by: 'client' })
      this.#call?.abort()
    }
    this.#body?.destroy()
    const { metrics, accessLog } = this.#context
    const durationMs = performance.now() - this.#beganMs
    metrics.seconds.observe({ status: `${Math.floor(this.#status / 100)}xx` }, durationMs / 1000)
    accessLog.write(() =>
      accessOf({ ...this.#exchange.request, version: this.#exchange.version }, this.#decision, {
        atMs: this.#askedAtMs,
        durationMs,
        status: this.#status,
        bytesSent: this.#bytesSent,
        bytesReceived: this.#bytesReceived,
        decisionMs: this.#decidedMs,
        upstreamMs: this.#upstreamMs,
        complete: complete && this.#ended,
      }),
    )
  }

  /** Passes a body on as it comes, and fails as soon as it is too large. */
  #bounded(body: Readable, bytesMax: number): Transform {
    const counting = new Transform({
      transform: (chunk: Buffer, _encoding, done) => {
        this.#bytesReceived += chunk.length
        done(this.#bytesReceived > bytesMax ? new BodyTooLarge() : null, chunk)
      },
    })
    counting.on('error', () => body.unpipe(counting))
    body.on('error', (error) => counting.destroy(error))
    for (const chunk of this.#kept) counting.write(chunk)
    if (body.readableEnded) counting.end()
    return body.pipe(counting)
  }
}

/** Why a request is broken off that was admitted. */
const WATCHED: ReadonlySet<Reason> = new Set(['blocked', 'caller-blocked', 'token-invalid', 'unavailable'])

function failureOf(error: Error): Reason {
  if (error instanceof BodyTooLarge || error.cause instanceof BodyTooLarge) return 'body-too-large'
  if (error instanceof UpstreamFull) return 'too-busy'
  return error instanceof UpstreamTimeout ? 'upstream-timeout' : 'upstream-failed'
}
