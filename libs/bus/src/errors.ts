import { JetStreamApiError } from '@nats-io/jetstream'
import { errors } from '@nats-io/transport-node'
import { AppError } from '@tollward/errors'

/** JetStream's numbers for "the last sequence is another one": of a stream, and of a subject in it. */
const WRONG_LAST_SEQUENCE = new Set([10071, 10164])

/** Whether a publish was refused because somebody else had written first. */
export function isWrongLastSequence(error: unknown): boolean {
  return error instanceof JetStreamApiError && WRONG_LAST_SEQUENCE.has(error.code)
}

/** What a failed exchange with the server means to whoever asked for it. */
export function busError(error: unknown, what: string): AppError {
  if (error instanceof AppError) return error
  if (isWrongLastSequence(error))
    return new AppError('conflict', `${what}: it was changed meanwhile.`, { cause: error })
  if (error instanceof errors.TimeoutError) {
    return new AppError('deadline_exceeded', `${what}: the bus did not answer in time.`, { cause: error })
  }
  return new AppError('unavailable', `${what}: the bus is not available.`, { cause: error })
}
