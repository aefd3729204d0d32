import { AppError } from '@tollward/errors'
import { doubleSha256 } from '../raw-transaction.ts'
import { showHash } from '../watched-outputs.ts'

/** The 80 bytes that a block begins with. Hashes are as nodes show them. */
export interface Header {
  readonly raw: Uint8Array
  readonly hash: string
  readonly previousHash: string
  readonly merkleRoot: string
  /** Seconds since 1970, as the miner says. */
  readonly time: number
  /** The target in compact form. */
  readonly bits: number
}

export const HEADER_BYTES = 80
const PREVIOUS_HASH_AT = 4
const MERKLE_ROOT_AT = 36
const TIME_AT = 68
const BITS_AT = 72

/** Reads a header; it may claim whatever it wants. Throws AppError `invalid_argument` if it has another length. */
export function readHeader(raw: Uint8Array): Header {
  if (raw.length !== HEADER_BYTES) throw forged('A block header has 80 bytes.')
  const bytes = Buffer.from(raw)
  return {
    raw: bytes,
    hash: showHash(doubleSha256(bytes)),
    previousHash: showHash(bytes.subarray(PREVIOUS_HASH_AT, MERKLE_ROOT_AT)),
    merkleRoot: showHash(bytes.subarray(MERKLE_ROOT_AT, TIME_AT)),
    time: bytes.readUInt32LE(TIME_AT),
    bits: bytes.readUInt32LE(BITS_AT),
  }
}

/** What a server said is not what happened on the chain. */
export function forged(message: string): AppError {
  return new AppError('invalid_argument', message)
}
