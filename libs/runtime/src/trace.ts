import { randomBytes } from 'node:crypto'

const TRACEPARENT = /^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$/

/** Starts a trace (W3C Trace Context, level 1): version 00, random ids, sampled. */
export function newTraceparent(): string {
  return `00-${randomBytes(16).toString('hex')}-${randomBytes(8).toString('hex')}-01`
}

/** The caller's trace context with a span of our own, or a new trace if the caller's is none. */
export function childTraceparent(parent: string | undefined): string {
  if (parent === undefined || !TRACEPARENT.test(parent)) return newTraceparent()
  return `${parent.slice(0, 36)}${randomBytes(8).toString('hex')}${parent.slice(52)}`
}
