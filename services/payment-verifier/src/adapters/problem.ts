import { AppError, toAppError } from '@tollward/errors'

/** With 503: nothing that makes us unavailable heals faster. */
const UNAVAILABLE_RETRY_SECONDS = 2

/** What goes with a refusal besides its sentence. */
export interface ProblemExtras {
  readonly retryAfterSeconds?: number | undefined
  /** WWW-Authenticate. */
  readonly challenge?: string | undefined
}

/** A refusal as RFC 9457 has it. */
export class Problem extends AppError {
  readonly type: string
  readonly extras: ProblemExtras
  constructor(type: string, error: AppError, extras: ProblemExtras = {}) {
    super(error.code, error.message, { cause: error })
    this.type = type
    this.extras = extras
  }
}

/** The refusal for whatever was thrown. `bodyBytesMax` is what fastify was told. */
export function problemOf(error: unknown, bodyBytesMax: number): Problem {
  if (error instanceof Problem) return error
  const status = error instanceof Error && 'statusCode' in error ? error.statusCode : undefined
  if (status === 413)
    return new Problem('too-large', new AppError('too_large', `A body has at most ${bodyBytesMax} bytes.`))
  if (typeof status === 'number' && status >= 400 && status < 500) {
    return new Problem(
      'malformed-request',
      new AppError('invalid_argument', 'Send JSON as application/json.', { cause: error }),
    )
  }
  const known = toAppError(error)
  const isOutage = known.code === 'unavailable' || known.code === 'deadline_exceeded'
  const extras = isOutage ? { retryAfterSeconds: UNAVAILABLE_RETRY_SECONDS } : {}
  return new Problem(known.code.replaceAll('_', '-'), known, extras)
}
