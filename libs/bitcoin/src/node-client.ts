import { readFile } from 'node:fs/promises'
import { AppError } from '@tollward/errors'
import { z } from 'zod'

/** Where a bitcoin node answers JSON-RPC, and how we prove who we are: by the node's cookie file, or by name and password. */
export interface NodeOptions {
  /** `http://host:port/`, without credentials. */
  readonly url: string
  readonly cookieFile?: string
  readonly user?: string
  readonly password?: string
  readonly timeoutMs?: number
  /** Ends whatever is under way: a process that stops does not wait for a slow node. */
  readonly signal?: AbortSignal
}

/** One call of a batch. */
export interface NodeCall {
  readonly method: string
  readonly params: readonly unknown[]
}

/** A bitcoin node's JSON-RPC. */
export interface NodeClient {
  /**
   * Calls one method and checks its result. Throws AppError: `unavailable` (unreachable, starting, overloaded, too slow),
   * `unauthenticated`, `not_found` (the node knows no such block or transaction), `internal` (anything else).
   */
  call<T>(result: z.ZodType<T>, method: string, params?: readonly unknown[], options?: CallOptions): Promise<T>
  /** Calls one method many times in one request; undefined where the node knows no such block or transaction. */
  callEach<T>(result: z.ZodType<T>, calls: readonly NodeCall[]): Promise<(T | undefined)[]>
}

export interface CallOptions {
  /** Instead of the client's. */
  readonly timeoutMs?: number
}

/** A node that is validating a block answers late, not never. */
const CALL_TIMEOUT_MS = 30_000
/** A full block in hexadecimal is 8 MB, the ids of a mempool in a storm 30 MB. */
const RESPONSE_BYTES_MAX = 64 * 1024 * 1024

/** bitcoind's own error numbers, where they mean something to us. */
const RPC_INVALID_ADDRESS_OR_KEY = -5
const RPC_INVALID_PARAMETER = -8
const RPC_IN_WARMUP = -28
/** Asked for a hash that it does not know, or for a height above its best block. */
const NO_SUCH_THING: ReadonlySet<number> = new Set([RPC_INVALID_ADDRESS_OR_KEY, RPC_INVALID_PARAMETER])

const Reply = z.object({
  id: z.number().nullable(),
  result: z.unknown(),
  error: z.object({ code: z.number(), message: z.string() }).nullish(),
})
type Reply = z.infer<typeof Reply>

/** A client of the node. It connects with the first call. */
export function nodeClient(options: NodeOptions): NodeClient {
  const send = async (body: unknown, timeoutMs = options.timeoutMs ?? CALL_TIMEOUT_MS): Promise<unknown> => {
    const timeout = AbortSignal.timeout(timeoutMs)
    const signal = options.signal === undefined ? timeout : AbortSignal.any([timeout, options.signal])
    try {
      return await post(options, JSON.stringify(body), signal)
    } catch (error) {
      if (error instanceof AppError) throw error
      throw new AppError('unavailable', 'The bitcoin node does not answer.', { cause: error })
    }
  }
  return {
    call: async (result, method, params = [], { timeoutMs } = {}) => {
      const reply = readReply(await send({ jsonrpc: '1.0', id: 0, method, params }, timeoutMs))
      if (reply.error) throw refusal(method, reply.error)
      return checked(result, method, reply.result)
    },
    callEach: async (result, calls) => {
      if (calls.length === 0) return []
      const body = await send(calls.map((call, id) => ({ jsonrpc: '1.0', id, ...call })))
      if (!Array.isArray(body)) throw unexpected('batch', body)
      const replies = new Map(body.map(readReply).map((reply) => [reply.id, reply]))
      return calls.map(({ method }, id) => {
        const reply = replies.get(id)
        if (reply === undefined) throw unexpected(method, body)
        if (reply.error && NO_SUCH_THING.has(reply.error.code)) return undefined
        if (reply.error) throw refusal(method, reply.error)
        return checked(result, method, reply.result)
      })
    },
  }
}

async function post(options: NodeOptions, body: string, signal: AbortSignal): Promise<unknown> {
  const response = await fetch(options.url, {
    method: 'POST',
    body,
    signal,
    redirect: 'error',
    headers: { 'content-type': 'application/json', authorization: await authorization(options) },
  })
  if (response.status === 401 || response.status === 403) {
    await response.body?.cancel()
    throw new AppError('unauthenticated', 'The bitcoin node refuses our credentials: check cookie file or password.')
  }
  if (response.status === 503) {
    await response.body?.cancel()
    throw new AppError('unavailable', 'The bitcoin node has too much to do.')
  }
  // Other failures of bitcoind carry an RPC error in their body.
  return JSON.parse(await readLimited(response))
}

/** The node writes a new cookie at each start, so it is read for each request. */
async function authorization({ cookieFile, user, password }: NodeOptions): Promise<string> {
  const credentials = cookieFile === undefined ? `${user ?? ''}:${password ?? ''}` : await readFile(cookieFile, 'utf8')
  return `Basic ${Buffer.from(credentials.trim()).toString('base64')}`
}

async function readLimited(response: Response): Promise<string> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of response.body ?? []) {
    bytes += chunk.byteLength
    if (bytes > RESPONSE_BYTES_MAX) throw new AppError('internal', 'The bitcoin node answers with too much.')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString('utf8')
}

function readReply(body: unknown): Reply {
  const reply = Reply.safeParse(body)
  if (!reply.success) throw unexpected('request', reply.error)
  return reply.data
}

function checked<T>(schema: z.ZodType<T>, method: string, value: unknown): T {
  const result = schema.safeParse(value)
  if (!result.success) throw unexpected(method, result.error)
  return result.data
}

function refusal(method: string, { code, message }: { code: number; message: string }): AppError {
  const cause = new Error(`${method}: ${message} (${code})`)
  if (code === RPC_INVALID_ADDRESS_OR_KEY)
    return new AppError('not_found', 'The bitcoin node knows no such thing.', { cause })
  if (code === RPC_INVALID_PARAMETER)
    return new AppError('invalid_argument', 'The bitcoin node refuses the question.', { cause })
  if (code === RPC_IN_WARMUP) return new AppError('unavailable', 'The bitcoin node is starting.', { cause })
  return new AppError('internal', 'The bitcoin node failed.', { cause })
}

function unexpected(method: string, cause: unknown): AppError {
  return new AppError('internal', `The bitcoin node's answer to ${method} is not as documented.`, { cause })
}
