/** An internal token with less life left than this is not handed out again: upstream has to be able to use it. */
const INTERNAL_TOKEN_LEFT_MIN_MS = 15_000

/** An answer without internal token is used as long as one with it commonly is. */
const WITHOUT_INTERNAL_TOKEN_MS = 45_000

/** What an answer about a token says of times; all are milliseconds since the epoch. */
export interface Life {
  readonly expiresAtMs: number
  /** Undefined where the answer has no internal token. */
  readonly internalTokenExpiresAtMs: number | undefined
}

/** Until when an answer about a token may be given again. */
export function usableUntilMs({ expiresAtMs, internalTokenExpiresAtMs }: Life, nowMs: number): number {
  if (internalTokenExpiresAtMs === undefined) return Math.min(expiresAtMs, nowMs + WITHOUT_INTERNAL_TOKEN_MS)
  // Close to the end of the access token there is no longer internal token to be had.
  if (internalTokenExpiresAtMs >= expiresAtMs) return expiresAtMs
  return internalTokenExpiresAtMs - INTERNAL_TOKEN_LEFT_MIN_MS
}
