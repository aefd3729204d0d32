import type { Bucket, Entry } from '@tollward/bus'
import type { StoredClient } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import type { IssuerMetrics } from '../../metrics.ts'

/** What was written is heard within milliseconds; a roster that is deaf for longer lets nobody in. */
const HEARD_WITHIN_MS = 3000

/** How many clients have registered themselves, counted by following their bucket. */
export interface Roster extends AsyncDisposable {
  readonly size: number
  /**
   * Writes a client and says how many there were then, itself included. Of several that come at once each has another number,
   * whichever replicas they came by, since a bucket has one order. AppError `unavailable` if the bucket is not heard.
   */
  sizeAfter(key: string, write: () => Promise<number>): Promise<number>
}

/** Follows the bucket until disposed. */
export async function openRoster(clients: Bucket<StoredClient>, { selfRegistered }: IssuerMetrics): Promise<Roster> {
  const members = new Set<string>()
  const waiting = new Map<string, (size: number) => void>()
  const count = (key: string, entry: Entry<StoredClient> | undefined) => {
    if (entry?.value.terms?.selfRegistered && !entry.value.deleted) members.add(key)
    else members.delete(key)
    selfRegistered.set(members.size)
  }
  const following = await clients.follow({
    snapshot: (entries) => {
      members.clear()
      for (const [key, entry] of entries) count(key, entry)
      // Nothing says what their numbers were: each counts as the last.
      for (const key of entries.keys()) waiting.get(key)?.(members.size)
    },
    change: (key, entry) => {
      count(key, entry)
      if (entry) waiting.get(key)?.(members.size)
    },
  })
  return {
    get size() {
      return members.size
    },
    sizeAfter: async (key, write) => {
      const { promise, resolve, reject } = Promise.withResolvers<number>()
      waiting.set(key, resolve)
      const deaf = new AppError('unavailable', 'Clients cannot be registered at the moment; try again in a second.')
      const timer = setTimeout(() => reject(deaf), HEARD_WITHIN_MS)
      try {
        await write()
        return await promise
      } finally {
        clearTimeout(timer)
        waiting.delete(key)
      }
    },
    [Symbol.asyncDispose]: () => following[Symbol.asyncDispose](),
  }
}
