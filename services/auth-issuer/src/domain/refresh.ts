import { createHmac } from 'node:crypto'

/**
 * A refresh token that comes back so soon is an honest retry: two tabs, or an answer that was lost. It leads to the same
 * successor. Later it means that two parties have the token.
 */
export const REFRESH_GRACE_SECONDS = 10

/** What is kept of one refresh token, as far as its use goes. */
export interface RefreshUse {
  readonly usedAtMs?: number | undefined
  readonly revoked?: unknown
}

/** The value of the token that replaces `token`: whoever is asked again gets the same, and nobody without the key does. */
export function successorOf(token: string, key: Buffer): string {
  return createHmac('sha256', key).update(token).digest('base64url')
}

/** Whether a used token may still be shown as unused: its rotation can be finished or repeated. */
export function isInGrace({ usedAtMs }: RefreshUse, nowMs: number): boolean {
  return usedAtMs !== undefined && nowMs - usedAtMs <= REFRESH_GRACE_SECONDS * 1000
}

/**
 * Whether the rotation of a token may go on: it was not used yet, or within the grace window its successor was neither used nor
 * revoked. Otherwise somebody is ahead.
 */
export function mayRotate(token: RefreshUse, successor: RefreshUse | undefined, nowMs: number): boolean {
  if (token.revoked !== undefined) return false
  if (token.usedAtMs === undefined) return true
  if (!isInGrace(token, nowMs)) return false
  return successor === undefined || (successor.usedAtMs === undefined && successor.revoked === undefined)
}
