/** So many at once, then one each interval. */
export interface Rate {
  readonly burst: number
  readonly intervalMs: number
}

const SECOND_MS = 1000
const MINUTE_MS = 60 * SECOND_MS

/**
 * Attempts to sign in that fail. Names: what somebody may mistype; then so few that guessing takes years, while the owner never
 * waits for longer than one interval. A browser that the person has signed in with before is counted by itself, so that
 * strangers who use up the name's attempts do not keep them out. Sources: an office behind one address.
 */
export const SIGN_IN_RATES = {
  name: { burst: 10, intervalMs: 5 * MINUTE_MS },
  browser: { burst: 10, intervalMs: MINUTE_MS },
  source: { burst: 50, intervalMs: 10 * SECOND_MS },
} as const satisfies Record<string, Rate>

/** Codes that people type for their devices, right ones too, from one source (RFC 8628, section 5.1). */
export const USER_CODE_RATE: Rate = { burst: 30, intervalMs: 10 * SECOND_MS }

const IPV4_MAPPED = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]

/** Bytes of an IPv6 address that are one subscriber's: whoever has a /64 has all of it. */
const IPV6_SUBSCRIBER_BYTES = 8

/**
 * Takes one attempt (generic cell rate algorithm). The state is the theoretical arrival time; one that lies further ahead than
 * the burst reaches, as after a clock was set back, counts as the end of the burst: nobody waits for longer than one interval.
 */
export function takeAttempt(
  theoreticalArrivalMs: number,
  { burst, intervalMs }: Rate,
  nowMs: number,
): { theoreticalArrivalMs: number } | { retryAfterMs: number } {
  const arrivalMs = Math.min(Math.max(theoreticalArrivalMs, nowMs), nowMs + burst * intervalMs)
  const allowedAtMs = arrivalMs + intervalMs - burst * intervalMs
  if (allowedAtMs > nowMs) return { retryAfterMs: allowedAtMs - nowMs }
  return { theoreticalArrivalMs: arrivalMs + intervalMs }
}

/** The state without one attempt that was taken. */
export function withoutAttempt(theoreticalArrivalMs: number, { intervalMs }: Rate): number {
  return theoreticalArrivalMs - intervalMs
}

/** What counts as one source: an IPv4 address, or the /64 of an IPv6 address. The address has 16 bytes. */
export function sourceOf(address: Uint8Array): Uint8Array {
  const isIpv4 = IPV4_MAPPED.every((byte, index) => address[index] === byte)
  return isIpv4 ? address : address.subarray(0, IPV6_SUBSCRIBER_BYTES)
}
