import { randomFillSync } from 'node:crypto'
import { v7 } from 'uuid'

const ID_BYTES = 16
/** Random bytes are drawn for so many ids at once: drawing them one by one cost more than all the rest of a decision. */
const IDS_AT_ONCE = 256

const pool = new Uint8Array(ID_BYTES * IDS_AT_ONCE)
let used = pool.length

/** A new UUIDv7 (RFC 9562, 5.7): unique, unguessable, and it tells when the decision was made. */
export function newDecisionId(): string {
  if (used === pool.length) {
    randomFillSync(pool)
    used = 0
  }
  const random = pool.subarray(used, used + ID_BYTES)
  used += ID_BYTES
  return v7({ random })
}
