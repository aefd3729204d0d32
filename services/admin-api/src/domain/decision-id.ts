import { AppError } from '@tollward/errors'

/** How long the stream OBSERVED keeps what decision points saw. */
const DECISION_KEPT_MS = 10 * 60_000
/** Clocks of decision points and of this machine may differ by as much. */
export const CLOCK_SKEW_MS = 5000

const UUID_V7 = /^([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/

/**
 * When the decision was made, in ms: a UUIDv7 tells its own time (RFC 9562, section 5.7). AppError `invalid_argument` if it is
 * no decision id, `not_found` if nothing of that time is kept any more.
 */
export function decisionTime(decisionId: string, nowMs: number): number {
  const match = UUID_V7.exec(decisionId.toLowerCase())
  if (!match?.[1] || !match[2]) {
    throw new AppError('invalid_argument', 'A decision id is the value of x-tollward-decision, a UUID of version 7.')
  }
  const decidedAtMs = Number.parseInt(match[1] + match[2], 16)
  if (decidedAtMs > nowMs + CLOCK_SKEW_MS) throw new AppError('invalid_argument', 'That decision id is of the future.')
  if (decidedAtMs < nowMs - DECISION_KEPT_MS) {
    const ageMinutes = Math.floor((nowMs - decidedAtMs) / 60_000)
    throw new AppError('not_found', `That decision was made ${ageMinutes} minutes ago; decisions are kept for 10.`)
  }
  return decidedAtMs
}
