import { type Readable, Transform } from 'node:stream'
import type { AddressRange } from '@tollward/contracts'
import type { Admission, Decider, Decision, Reason, Rejection, RequestFacts } from '@tollward/decision'
import type { Logger } from 'pino'
import type { Access } from '../domain/access-line.ts'
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
import { type Upstream, type UpstreamCall, type UpstreamListener, UpstreamTimeout } from './upstream.ts'

/** What every request needs. */
export interface ProxyContext {
  readonly upstream: Upstream
  readonly bodyBytesMax: number
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
  readonly #timers: { body?: NodeJS.Timeout; stalled?: NodeJS.Timeout } = {}
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
    const decision = facts ? decider.decide(facts) : decider.refuse('malformed-request')
    if (decision instanceof Promise) void decision.then((made) => this.#conclude(made, facts))
    else this.#conclude(decision, facts)
  }

  #conclude(decision: Decision, _facts: RequestFacts | undefined): void {
    this.#decidedMs = performance.now() - this.#beganMs
    if (this.#closed) this.#decision = decision
    else if (decision.admitted) this.#forward(decision)
    else this.#refuse(decision)
  }

  #forward(admission: Admission): void {
    this.#decision = admission
    const { upstream, bodyBytesMax, trustedProxies } = this.#context
    const { request, body, expectsContinue } = this.#exchange
    if (body && Number(valuesOf(request.fields, 'content-length')[0] ?? 0) > bodyBytesMax) {
      this.#fail('body-too-large')
      return
    }
    const { method, peer, scheme, fields } = request
    const forwarded = { peer, scheme, host: hostOf(request) ?? '', keepFor: trustedProxies.length > 0, bodiless: !body }
    if (expectsContinue && body) this.#exchange.goOn()
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

  onHint(fields: FieldList): void {
    if (!this.#exchange.begun) this.#exchange.hint(fields)
  }

  onHead(status: number, fields: FieldList, ends: boolean): void {
    this.#upstreamMs = performance.now() - this.#beganMs - this.#decidedMs
    this.#status = status
    const ours = this.#decision?.admitted ? this.#decision : { headers: [] }
    if (!this.#closed) this.#exchange.begin(status, downstreamFields(fields, ours), ends)
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
    this.#context.metrics.brokenAnswers.inc({ by: 'api' })
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
    if (!this.#ended) {
      if (this.#call) this.#context.metrics.brokenAnswers.inc({ by: 'client' })
      this.#call?.abort()
    }
    this.#body?.destroy()
    const { metrics, accessLog } = this.#context
    const durationMs = performance.now() - this.#beganMs
    metrics.seconds.observe({ status: `${Math.floor(this.#status / 100)}xx` }, durationMs / 1000)
    accessLog.write(() => this.#access(complete && this.#ended, durationMs))
  }

  #access(complete: boolean, durationMs: number): Access {
    const { request, version } = this.#exchange
    const { fields, method, target, peer } = request
    const decision = this.#decision
    const {
      rule = '',
      client = '',
      subject = '',
      'would-refuse': observed = '',
    } = decision?.admitted ? decision.metadata : {}
    const first = (name: string) => valuesOf(fields, name)[0] ?? ''
    return {
      atMs: Date.now() - durationMs,
      address: peer,
      method,
      target,
      version,
      host: hostOf(request) ?? '',
      referer: first('referer'),
      userAgent: first('user-agent'),
      status: this.#status,
      bytesSent: this.#bytesSent,
      bytesReceived: this.#bytesReceived,
      durationMs,
      decisionMs: this.#decidedMs,
      upstreamMs: this.#upstreamMs,
      decision: decision?.id ?? '',
      reason: decision && !decision.admitted ? decision.reason : observed,
      rule,
      client,
      subject,
      complete,
    }
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
    return body.pipe(counting)
  }
}

function failureOf(error: Error): Reason {
  if (error instanceof BodyTooLarge || error.cause instanceof BodyTooLarge) return 'body-too-large'
  return error instanceof UpstreamTimeout ? 'upstream-timeout' : 'upstream-failed'
}
