import { randomFillSync } from 'node:crypto'

/** A random part is drawn for so many ids at once: drawing them one by one cost more than all the rest of a decision. */
const IDS_AT_ONCE = 256
const RANDOM_BYTES = 10
const RANDOM_DIGITS = 2 * RANDOM_BYTES
const TIME_DIGITS = 12

const pool = Buffer.alloc(RANDOM_BYTES * IDS_AT_ONCE)
let digits = ''
let used = 0

/** A new UUIDv7 (RFC 9562, 5.7): unique, unguessable, and it tells when the decision was made. */
export function newDecisionId(): string {
  if (used === digits.length) {
    // In each, the two bits of the variant; the digit of the version is put in its place below.
    randomFillSync(pool)
    for (let at = 2; at < pool.length; at += RANDOM_BYTES) pool[at] = 0x80 | ((pool[at] ?? 0) & 0x3f)
    digits = pool.toString('hex')
    used = 0
  }
  const time = Date.now().toString(16).padStart(TIME_DIGITS, '0')
  const random = digits.slice(used, used + RANDOM_DIGITS)
  used += RANDOM_DIGITS
  return `${time.slice(0, 8)}-${time.slice(8)}-7${random.slice(1, 4)}-${random.slice(4, 8)}-${random.slice(8)}`
}
