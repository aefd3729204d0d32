import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { type Metadata, type ServerErrorResponse, type ServerWritableStream, status } from '@grpc/grpc-js'
import type { Bus } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { ActionPerformedSchema, AdminService } from '@tollward/contracts/admin'
import type { GrpcHandlers } from '@tollward/contracts/grpc'
import { IntrospectorService } from '@tollward/contracts/token'
import { AppError, toAppError } from '@tollward/errors'
import type { Logger } from 'pino'
import { bearerToken, type Caller, callerOf, requireScope } from '../domain/access.ts'
import { isAudited, type MethodName, type RequestOf, SCOPES, targetOf } from '../domain/audit.ts'
import type { Metrics } from '../metrics.ts'

/** No call keeps a caller waiting for longer; those that wait for the bus would otherwise wait for ever. */
const CALL_TIMEOUT_MS = 30_000
const AUDIT_ATTEMPTS_MAX = 3
/** A stream goes on only while its token is good: looked at again and again. */
const REAUTHORIZE_MS = 5000
/** What of a status message fits, percent-encoded, into the trailers of an answer. */
const DETAILS_BYTES_MAX = 16_384

type Methods = (typeof AdminService)['method']
type StreamName = 'watchFlows' | 'watchApis' | 'exportLedger'
type UnaryName = Exclude<MethodName, StreamName>
type ResponseOf<Name extends MethodName> = MessageInitShape<Methods[Name]['output']>

/** One call: who calls, and what the audit will say that it was about. */
interface Action {
  readonly caller: Caller
  target: string
}

/** The methods, without authorization, audit and gRPC. What they throw is answered as its error code and message. */
export type AdminMethods = {
  readonly [Name in UnaryName]: (request: RequestOf<Name>, action: Action) => Promise<ResponseOf<Name>>
}

/** Where the answers of a stream go. */
export interface StreamWriter<Response> {
  /** False: not written, because the caller reads too slowly. */
  offer(response: Response): boolean
  /** Writes, and resolves when the caller has room for more. Throws when the call is over. */
  write(response: Response): Promise<void>
}

/** The methods that answer with streams: until there is no more, or until the signal is aborted. */
export type AdminStreams = {
  readonly [Name in StreamName]: (
    request: RequestOf<Name>,
    writer: StreamWriter<ResponseOf<Name>>,
    signal: AbortSignal,
  ) => Promise<void>
}

export interface CallOptions {
  readonly bus: Bus
  readonly methods: AdminMethods
  readonly streams: AdminStreams
  readonly metrics: Metrics
  readonly log: Logger
  /** Aborted when the service ends: streams end with it. */
  readonly signal: AbortSignal
}

interface Call {
  readonly metadata: Metadata
}

const actionPerformed = contract(ActionPerformedSchema)

/** The handlers of the gRPC server: each call is authorized, bounded in time, measured, and audited if it changes something. */
export function adminHandlers(options: CallOptions): GrpcHandlers<typeof AdminService> {
  const introspector = options.bus.client(IntrospectorService)
  const authorize = async (name: MethodName, call: Call, onCaller: (caller: Caller) => void) => {
    const { info } = await introspector.introspect({ token: bearerToken(call.metadata.get('authorization')) })
    onCaller(callerOf(info))
    requireScope(info, SCOPES[name])
  }

  const answer = async <Name extends UnaryName>(name: Name, call: Call & { request: RequestOf<Name> }) => {
    const stop = options.metrics.calls.startTimer({ method: name })
    let action: Action | undefined
    try {
      await authorize(name, call, (caller) => {
        action = { caller, target: targetOf(name, call.request) }
      })
      if (!action) throw new Error('authorized without a caller')
      const response = await inTime(options.methods[name](call.request, action))
      stop({ status: status[status.OK] })
      if (isAudited(name, call.request)) await audit(options, name, action, status.OK)
      return response
    } catch (thrown) {
      const error = toAppError(thrown)
      if (error.code === 'internal') options.log.error({ err: thrown, method: name }, 'call failed')
      stop({ status: status[error.meaning.grpc] ?? '' })
      if (action && isAudited(name, call.request)) await audit(options, name, action, error.meaning.grpc)
      throw error
    }
  }

  const unary = Object.keys(options.methods).map((name) => [
    name,
    (call: Call & { request: RequestOf<UnaryName> }, callback: UnaryCallback) => {
      answer(name as UnaryName, call).then(
        (response) => callback(null, response),
        (error: AppError) => callback(grpcError(error)),
      )
    },
  ])
  const streams = Object.keys(options.streams).map((name) => [
    name,
    streamHandler(name as StreamName, options, authorize),
  ])
  return Object.fromEntries([...unary, ...streams]) as GrpcHandlers<typeof AdminService>
}

type UnaryCallback = (error: Partial<ServerErrorResponse> | null, response?: unknown) => void
type Authorize = (name: MethodName, call: Call, onCaller: (caller: Caller) => void) => Promise<void>
type StreamCall<Name extends StreamName> = ServerWritableStream<RequestOf<Name>, ResponseOf<Name>>

function streamHandler<Name extends StreamName>(name: Name, options: CallOptions, authorize: Authorize) {
  const { streams, metrics, log, signal } = options
  return async (call: StreamCall<Name>): Promise<void> => {
    const stop = metrics.calls.startTimer({ method: name })
    const ended = new AbortController()
    const fail = (thrown: unknown) => ended.abort(toAppError(thrown))
    call.on('cancelled', () => ended.abort())
    let action: Action | undefined
    const check = () =>
      authorize(name, call, (caller) => {
        action = { caller, target: targetOf(name, call.request) }
      })
    let timer: NodeJS.Timeout | undefined
    let failure: AppError | undefined
    try {
      await check()
      timer = setInterval(() => void check().catch(fail), REAUTHORIZE_MS)
      const over = AbortSignal.any([ended.signal, signal])
      await streams[name](call.request, writerOf(call, over), over)
      failure = endedBy(ended.signal, signal)
    } catch (thrown) {
      failure = endedBy(ended.signal, signal) ?? (ended.signal.aborted ? undefined : toAppError(thrown))
      if (failure?.code === 'internal') log.error({ err: thrown, method: name }, 'call failed')
    } finally {
      clearInterval(timer)
    }
    if (failure) call.emit('error', grpcError(failure))
    else if (!ended.signal.aborted) call.end()
    const result = failure?.meaning.grpc ?? (ended.signal.aborted ? status.CANCELLED : status.OK)
    stop({ status: status[result] ?? '' })
    if (action && isAudited(name, call.request)) await audit(options, name, action, result)
  }
}

/** Why a stream was ended from this side; undefined: the caller ended it, or nobody did. */
function endedBy(ended: AbortSignal, stopping: AbortSignal): AppError | undefined {
  if (ended.reason instanceof AppError) return ended.reason
  return stopping.aborted ? new AppError('unavailable', 'admin-api is stopping; call again.') : undefined
}

function writerOf<Name extends StreamName>(call: StreamCall<Name>, over: AbortSignal): StreamWriter<ResponseOf<Name>> {
  return {
    offer: (response) => {
      if (call.writableNeedDrain) return false
      call.write(response)
      return true
    },
    write: async (response) => {
      over.throwIfAborted()
      if (!call.write(response)) await once(call, 'drain', { signal: over })
    },
  }
}

/** Says on the bus and in the log who did what, or was refused it. */
async function audit(
  { bus, log, metrics }: CallOptions,
  name: MethodName,
  action: Action,
  code: status,
): Promise<void> {
  const record = {
    actionId: randomUUID(),
    actor: action.caller.clientId,
    action: AdminService.method[name].name,
    target: action.target,
    result: status[code] ?? '',
  }
  const message = create(ActionPerformedSchema, { ...record, performedAt: timestampFromMs(Date.now()) })
  for (let attempt = 1; ; attempt++) {
    try {
      await bus.publish(actionPerformed, message, { id: record.actionId })
      return log.info(record, 'action performed')
    } catch (error) {
      if (attempt < AUDIT_ATTEMPTS_MAX) continue
      metrics.auditFailures.inc()
      return log.error({ err: error, ...record }, 'action performed, but its audit record could not be published')
    }
  }
}

async function inTime<T>(work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    const error = new AppError('deadline_exceeded', 'That took too long; look at the state before trying again.')
    timer = setTimeout(() => reject(error), CALL_TIMEOUT_MS)
  })
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}

function grpcError({ meaning, message }: AppError): Partial<ServerErrorResponse> {
  const lines = message.toWellFormed().split('\n')
  while (lines.length > 1 && encodeURI(lines.join('\n')).length > DETAILS_BYTES_MAX) lines.pop()
  return { code: meaning.grpc, details: lines.join('\n') }
}
