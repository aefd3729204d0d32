/** What one kind of failure means at each edge: gRPC status, HTTP status, and what a consumer does with the message. */
interface Meaning {
  readonly grpc: number
  readonly http: number
  /** 'retry': the same message may succeed later; 'discard': it never will. */
  readonly outcome: 'retry' | 'discard'
}

/** The one table of error codes. gRPC numbers are those of google.rpc.Code. */
export const ERROR_CODES = {
  invalid_argument: { grpc: 3, http: 400, outcome: 'discard' },
  unauthenticated: { grpc: 16, http: 401, outcome: 'discard' },
  payment_required: { grpc: 9, http: 402, outcome: 'discard' },
  permission_denied: { grpc: 7, http: 403, outcome: 'discard' },
  not_found: { grpc: 5, http: 404, outcome: 'discard' },
  already_exists: { grpc: 6, http: 409, outcome: 'discard' },
  /** Somebody else wrote first: read again and decide again. */
  conflict: { grpc: 10, http: 409, outcome: 'retry' },
  failed_precondition: { grpc: 9, http: 412, outcome: 'discard' },
  too_large: { grpc: 8, http: 413, outcome: 'discard' },
  resource_exhausted: { grpc: 8, http: 429, outcome: 'retry' },
  internal: { grpc: 13, http: 500, outcome: 'retry' },
  unavailable: { grpc: 14, http: 503, outcome: 'retry' },
  deadline_exceeded: { grpc: 4, http: 504, outcome: 'retry' },
} as const satisfies Record<string, Meaning>

export type ErrorCode = keyof typeof ERROR_CODES

/**
 * A failure with a stable code. The message is safe to show to whoever caused it and says what to do next; what must stay
 * inside goes into `cause`.
 */
export class AppError extends Error {
  override readonly name = 'AppError'
  readonly code: ErrorCode

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options)
    this.code = code
  }

  /** What the code means at each edge. */
  get meaning(): Meaning {
    return ERROR_CODES[this.code]
  }
}

/** Turns whatever was thrown into an AppError; what was not one becomes `internal`, with a message that tells nothing. */
export function toAppError(thrown: unknown): AppError {
  if (thrown instanceof AppError) return thrown
  return new AppError('internal', 'Something went wrong on our side; try again later.', { cause: thrown })
}

/** Whether the text is one of our codes: a code that came over a wire is not trusted to be one. */
export function isErrorCode(text: string): text is ErrorCode {
  return Object.hasOwn(ERROR_CODES, text)
}
