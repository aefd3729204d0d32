import {
  create,
  type DescMethodUnary,
  type DescService,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from '@bufbuild/protobuf'
import { errors, headers, type Msg, type MsgHdrs, type Subscription } from '@nats-io/transport-node'
import { methodSubject, responderName } from '@tollward/contracts'
import { AppError, type ErrorCode, isErrorCode, toAppError } from '@tollward/errors'
import { busError } from './errors.ts'
import type { Answer } from './requests.ts'
import type { Session } from './session.ts'

const CALL_TIMEOUT_MS = 2000

const ERROR_HEADER = 'Tollward-Error'
const ERROR_MESSAGE_HEADER = 'Tollward-Error-Message'

/** Requests that one process answers at once; more are refused, so that a flood does not grow its memory. */
const ANSWERS_AT_ONCE_MAX = 1024

type Methods<S extends DescService> = S['method']
type UnaryInput<M> = M extends { input: infer I extends DescMethodUnary['input'] } ? I : never
type UnaryOutput<M> = M extends { output: infer O extends DescMethodUnary['output'] } ? O : never

/** What a responder is given besides the request. */
export interface CallContext {
  readonly traceparent?: string
}

/** One function for each method of the proto service. What it throws travels back as its error code and message. */
export type Implementation<S extends DescService> = {
  readonly [K in keyof Methods<S>]: (
    request: MessageShape<UnaryInput<Methods<S>[K]>>,
    context: CallContext,
  ) => Promise<MessageInitShape<UnaryOutput<Methods<S>[K]>>>
}

/** One function for each method of the proto service. Throws AppError: the responder's, or `unavailable`, `deadline_exceeded`. */
export type Client<S extends DescService> = {
  readonly [K in keyof Methods<S>]: (
    request: MessageInitShape<UnaryInput<Methods<S>[K]>>,
    options?: { readonly traceparent?: string },
  ) => Promise<MessageShape<UnaryOutput<Methods<S>[K]>>>
}

/** Answers the methods of a service, sharing the work with its other replicas. Disposing takes no more and finishes the rest. */
export function serve<S extends DescService>(
  session: Session,
  service: S,
  implementation: Implementation<S>,
): AsyncDisposable {
  const subscriptions: Subscription[] = []
  const running = new Set<Promise<void>>()
  for (const method of service.methods) {
    const handle = implementation[method.localName as keyof Methods<S>] as unknown as (
      request: MessageShape<typeof method.input>,
      context: CallContext,
    ) => Promise<MessageInitShape<typeof method.output>>
    const label = `${service.typeName}.${method.name}`
    const answer = async (message: Msg) => {
      const beganMs = performance.now()
      const done = (result: string) =>
        session.metrics.answers.observe({ method: label, result }, (performance.now() - beganMs) / 1000)
      const respond = (bytes: Uint8Array, head?: MsgHdrs) =>
        session.requests.send(() => sendAnswer(session, method.name, message, bytes, head))
      try {
        if (running.size > ANSWERS_AT_ONCE_MAX)
          throw new AppError('resource_exhausted', 'Too many requests at once; try again.')
        const traceparent = message.headers?.get('traceparent')
        const response = await handle(decodeRequest(method.input, message.data), traceparent ? { traceparent } : {})
        respond(toBinary(method.output, create(method.output, response)))
        done('ok')
      } catch (thrown) {
        const error = toAppError(thrown)
        if (error.code === 'internal') session.log.error({ err: thrown, method: method.name }, 'method failed')
        const head = headers()
        head.set(ERROR_HEADER, error.code)
        head.set(ERROR_MESSAGE_HEADER, error.message)
        respond(new Uint8Array(), head)
        done(error.code)
      }
    }
    subscriptions.push(
      session.connection.subscribe(methodSubject(service, method), {
        queue: responderName(service),
        callback: (error, message) => {
          if (error) return session.log.error({ err: error, method: method.name }, 'method cannot be served')
          const work = answer(message).finally(() => running.delete(work))
          running.add(work)
        },
      }),
    )
  }
  return {
    [Symbol.asyncDispose]: async () => {
      await Promise.all(subscriptions.map((subscription) => subscription.drain()))
      await Promise.allSettled(running)
    },
  }
}

/** Calls the methods of a service, whichever replica answers. */
export function client<S extends DescService>(session: Session, service: S, timeoutMs = CALL_TIMEOUT_MS): Client<S> {
  const call = (method: DescService['methods'][number]) => {
    const subject = methodSubject(service, method)
    const label = `${service.typeName}.${method.name}`
    return async (request: MessageInitShape<typeof method.input>, options: { traceparent?: string } = {}) => {
      const beganMs = performance.now()
      const done = (result: string) =>
        session.metrics.calls.observe({ method: label, result }, (performance.now() - beganMs) / 1000)
      try {
        const bytes = toBinary(method.input, create(method.input, request))
        const answer = await session.requests.ask(subject, bytes, timeoutMs, traced(options.traceparent))
        const response = readAnswer(answer, (data) => fromBinary(method.output, data))
        done('ok')
        return response
      } catch (thrown) {
        const error = callError(thrown, responderName(service))
        done(error.code)
        throw error
      }
    }
  }
  return Object.fromEntries(service.methods.map((method) => [method.localName, call(method)])) as unknown as Client<S>
}

function decodeRequest<Desc extends DescMethodUnary['input']>(schema: Desc, data: Uint8Array): MessageShape<Desc> {
  try {
    return fromBinary(schema, data)
  } catch (error) {
    throw new AppError('invalid_argument', `The request is no ${schema.typeName}.`, { cause: error })
  }
}

function traced(traceparent: string | undefined): MsgHdrs | undefined {
  if (traceparent === undefined) return undefined
  const head = headers()
  head.set('traceparent', traceparent)
  return head
}

/** Whoever waits for an answer that cannot be sent hears nothing in time, and asks again. */
function sendAnswer(
  session: Session,
  method: string,
  message: Msg,
  bytes: Uint8Array,
  head: MsgHdrs | undefined,
): void {
  try {
    message.respond(bytes, head === undefined ? {} : { headers: head })
  } catch (error) {
    session.log.warn({ err: error, method }, 'answer could not be sent')
  }
}

function readAnswer<T>({ data, headers: head }: Answer, decode: (data: Uint8Array) => T): T {
  const code = head?.get(ERROR_HEADER)
  if (!code) return decode(data)
  const known: ErrorCode = isErrorCode(code) ? code : 'internal'
  throw new AppError(known, head?.get(ERROR_MESSAGE_HEADER) || 'The service failed.')
}

function callError(thrown: unknown, responder: string): AppError {
  if (thrown instanceof errors.NoRespondersError) {
    return new AppError('unavailable', `${responder} is not there; try again in a moment.`, { cause: thrown })
  }
  return busError(thrown, `Asking ${responder}`)
}
