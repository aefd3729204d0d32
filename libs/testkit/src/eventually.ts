import { inspect } from 'node:util'

/** What `eventually` waits for, and how. */
export interface EventuallyOptions {
  /** What is awaited, as it completes "did not happen in time: …". */
  what: string
  timeoutMs?: number
  intervalMs?: number
  /** Ends the waiting early, with the signal's reason. */
  signal?: AbortSignal
}

const TIMEOUT_MS = 10_000
const INTERVAL_MS = 20

/**
 * Asks `condition` again and again until it gives something other than undefined, null or false, and returns that. Only for
 * what announces itself by no event. A condition that throws has not come true yet. After `timeoutMs` it throws, naming
 * what was awaited and the last value or error.
 */
export async function eventually<T>(
  condition: () => T | Promise<T>,
  { what, timeoutMs = TIMEOUT_MS, intervalMs = INTERVAL_MS, signal }: EventuallyOptions,
): Promise<Exclude<T, undefined | null | false>> {
  const deadline = performance.now() + timeoutMs
  let last: { value: unknown; thrown: boolean } | undefined
  const timedOut = () => {
    const seen = last === undefined ? 'it was never answered' : inspect(last.value, { depth: 4 })
    const message = `did not happen within ${timeoutMs} ms: ${what}; last: ${seen}`
    return new Error(message, last?.thrown ? { cause: last.value } : undefined)
  }
  while (true) {
    signal?.throwIfAborted()
    const left = deadline - performance.now()
    if (left <= 0) throw timedOut()
    try {
      const value = await within(left, condition, timedOut)
      last = { value, thrown: false }
      if (isThere(value)) return value
    } catch (error) {
      if (performance.now() >= deadline) throw timedOut()
      last = { value: error, thrown: true }
    }
    await new Promise((resolve) => setTimeout(resolve, intervalMs))
  }
}

function isThere<T>(value: T): value is Exclude<T, undefined | null | false> {
  return value !== undefined && value !== null && value !== false
}

/** A condition that hangs must not outlive the deadline. */
async function within<T>(timeoutMs: number, work: () => T | Promise<T>, error: () => Error): Promise<T> {
  const { promise: expired, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(() => reject(error()), timeoutMs)
  try {
    return await Promise.race([work(), expired])
  } finally {
    clearTimeout(timer)
  }
}
