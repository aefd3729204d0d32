/** An internal token with less life left than this is not handed out again: upstream has to be able to use it. */
const INTERNAL_TOKEN_LEFT_MIN_MS = 15_000

/** Until when an answer about a token may be given again. All times are milliseconds since the epoch. */
export function usableUntilMs({
  expiresAtMs,
  internalTokenExpiresAtMs,
}: {
  readonly expiresAtMs: number
  readonly internalTokenExpiresAtMs: number
}): number {
  // Close to the end of the access token there is no longer internal token to be had.
  if (internalTokenExpiresAtMs >= expiresAtMs) return expiresAtMs
  return internalTokenExpiresAtMs - INTERNAL_TOKEN_LEFT_MIN_MS
}
