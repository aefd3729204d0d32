import type { Bucket, Entry } from '@tollward/bus'
import type { IssuerMetrics } from '../metrics.ts'
import { isConflict, type Revocation, type StoredRecord, sameEnd } from './records.ts'

const WRITE_ATTEMPTS_MAX = 5

/** Records that somebody can end before their time, and of whose end everybody is told. */
export interface Revocable {
  /** The record unless it was ended. Finishes an end that nobody was told of. */
  live(entry: Entry<StoredRecord> | undefined): Promise<Entry<StoredRecord> | undefined>
  /** Ends the record. Resolves when the bus has acknowledged the event. False: there was nothing live to end. */
  revoke(key: string, why: Pick<Revocation, 'reason' | 'reusedToken'>): Promise<boolean>
}

/**
 * Makes the records of a bucket revocable. The mark is written first, so that nobody takes the record any more; if the process
 * ends before the event was acknowledged, the next look at the record publishes it.
 */
export function revocable(
  bucket: Bucket<StoredRecord>,
  announce: (entry: Entry<StoredRecord>, revocation: Revocation) => Promise<unknown>,
  metrics: IssuerMetrics,
): Revocable {
  const finish = async (entry: Entry<StoredRecord>, revoked: Revocation) => {
    await announce(entry, revoked)
    const value = { ...entry.value, revoked: { ...revoked, announced: true } }
    try {
      await bucket.update(entry.key, value, entry.revision, sameEnd(entry))
    } catch (error) {
      // Whoever was faster wrote the same.
      if (!isConflict(error)) throw error
    }
  }

  return {
    live: async (entry) => {
      const revoked = entry?.value.revoked
      if (!entry || !revoked) return entry
      if (!revoked.announced) {
        await finish(entry, revoked)
        metrics.revocationsFinished.inc()
      }
      return undefined
    },

    revoke: async (key, why) => {
      for (let attempt = 1; ; attempt++) {
        const entry = await bucket.get(key)
        if (!entry || entry.value.revoked?.announced) return false
        const revoked = entry.value.revoked ?? { atMs: Date.now(), announced: false, ...why }
        try {
          let { revision } = entry
          if (!entry.value.revoked) {
            revision = await bucket.update(key, { ...entry.value, revoked }, revision, sameEnd(entry))
          }
          await finish({ ...entry, revision }, revoked)
          return true
        } catch (error) {
          if (!isConflict(error) || attempt === WRITE_ATTEMPTS_MAX) throw error
        }
      }
    },
  }
}
