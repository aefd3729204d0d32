import type { Readable } from 'node:stream'
import { text as textOf } from 'node:stream/consumers'
import { type ServiceError, status } from '@grpc/grpc-js'
import type { AdminService } from '@tollward/contracts/admin'
import type { GrpcCallOptions, GrpcClient } from '@tollward/contracts/grpc'
import { AppError } from '@tollward/errors'
import { accessToken, adminClient, readOperator, type Scope } from './operator.ts'

/** admin-api answers every call within 30 s. */
const CALL_TIMEOUT_MS = 35_000

/** What a command works with: where it writes, what it reads, and when it should end. */
export interface Surroundings {
  readonly out: (text: string) => void
  readonly err: (text: string) => void
  readonly stdin: Readable
  readonly operatorFile: string
  /** Aborted by Ctrl-C. */
  readonly signal: AbortSignal
}

/** admin-api, with a token that is good for one scope. Nothing of it is kept on disk. */
export interface Session extends Disposable {
  readonly admin: GrpcClient<typeof AdminService>
  /** For calls that are answered once. */
  readonly call: GrpcCallOptions
  /** For streams, which last until somebody ends them. */
  readonly stream: GrpcCallOptions
}

/** Reads the credential, gets a token and opens admin-api. */
export async function openSession({ operatorFile, signal }: Surroundings, scope: Scope): Promise<Session> {
  const operator = readOperator(operatorFile)
  const metadata = { authorization: `Bearer ${await accessToken(operator, scope)}` }
  const admin = adminClient(operator)
  return {
    admin,
    call: { metadata, signal, timeoutMs: CALL_TIMEOUT_MS },
    stream: { metadata, signal },
    [Symbol.dispose]: () => admin[Symbol.dispose](),
  }
}

/** Opens a session for one piece of work. */
export async function withSession<T>(
  surroundings: Surroundings,
  scope: Scope,
  work: (session: Session) => Promise<T>,
): Promise<T> {
  using session = await openSession(surroundings, scope)
  return await work(session)
}

/**
 * Takes step after step, until one says that it was the last. A token that ran out, or a moment without admin-api, ends no work
 * that had got on since.
 */
export async function stepByStep(
  surroundings: Surroundings,
  scope: Scope,
  step: (session: Session) => Promise<'more' | 'done'>,
): Promise<void> {
  let gotOn = false
  for (;;) {
    try {
      return await withSession(surroundings, scope, async (session) => {
        while ((await step(session)) === 'more') gotOn = true
      })
    } catch (error) {
      if (!gotOn || surroundings.signal.aborted || !mayResume(error)) throw error
      gotOn = false
    }
  }
}

/**
 * Reads a stream until Ctrl-C. One that flowed, as `read` says, and was cut off is taken up again, with a new token.
 */
export async function following(
  surroundings: Surroundings,
  scope: Scope,
  read: (session: Session, flowed: () => void) => Promise<void>,
): Promise<void> {
  let hasFlowed = false
  const flowed = () => {
    hasFlowed = true
  }
  while (!surroundings.signal.aborted) {
    try {
      await withSession(surroundings, scope, (session) => read(session, flowed))
    } catch (error) {
      if (surroundings.signal.aborted) return
      if (!hasFlowed || !mayResume(error)) throw error
      hasFlowed = false
    }
  }
}

/** A token or password from the standard input, without the end of its line. AppError `invalid_argument` if there is none. */
export async function readSecret({ stdin }: Surroundings, what: string): Promise<string> {
  const secret = (await textOf(stdin)).replace(/\r?\n$/, '')
  if (secret === '') throw new AppError('invalid_argument', `The standard input holds no ${what}.`)
  return secret
}

/** What went wrong, in words for the person at the terminal; never a stack. */
export function sentenceOf(error: unknown): string {
  if (isServiceError(error)) {
    if (isUnreachable(error)) return 'admin-api does not answer; is the stack running? "npm start" starts it.'
    if (error.code === status.DEADLINE_EXCEEDED && /^Deadline exceeded/i.test(error.details)) {
      return 'admin-api did not answer in time; look at the state before trying again.'
    }
    return error.details || 'admin-api refused that without a reason.'
  }
  return error instanceof AppError ? error.message : `something went wrong in this command itself (${String(error)}).`
}

/** Whether a stream ended for a reason that a new token or a moment's wait cures. */
export function mayResume(error: unknown): boolean {
  return isServiceError(error) && (error.code === status.UNAUTHENTICATED || error.code === status.UNAVAILABLE)
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && 'code' in error && 'details' in error && typeof error.details === 'string'
}

/** What grpc-js itself says; admin-api's own words for "unavailable" name who is. */
function isUnreachable({ code, details }: ServiceError): boolean {
  return (
    code === status.UNAVAILABLE && /^(No connection|Connection dropped|Name resolution|read E|write E)/.test(details)
  )
}
