import { hash } from 'node:crypto'

/** Where the parts of a transaction lie in the bytes that hold it. */
export interface RawTransaction {
  readonly from: number
  /** Past its last byte. */
  readonly until: number
  /** Of the count of inputs: behind marker and flag if it has witnesses. */
  readonly inputsAt: number
  /** Past the last output: of the witnesses if it has any, else of the lock time. */
  readonly outputsUntil: number
  readonly hasWitness: boolean
}

/** Called while a transaction is read; positions are in the bytes that hold it. */
export interface TransactionVisitor {
  /** `outpointAt`: 32 bytes of txid and 4 of index. */
  onInput?(outpointAt: number): void
  /** `amountAt`: 8 bytes, little-endian. */
  onOutput?(vout: number, amountAt: number, scriptFrom: number, scriptUntil: number): void
}

export const OUTPOINT_BYTES = 36
const VERSION_BYTES = 4
const MARKER_AND_FLAG_BYTES = 2
const SEQUENCE_BYTES = 4
const AMOUNT_BYTES = 8
const LOCK_TIME_BYTES = 4

/** Reads bytes one after the other. Whatever lies beyond the end throws RangeError, as `Buffer` does. */
export class ByteReader {
  readonly bytes: Buffer
  at: number

  constructor(bytes: Uint8Array, at = 0) {
    this.bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.at = at
  }

  /** Moves on, and gives the position from which it did. */
  skip(bytes: number): number {
    const from = this.at
    if (bytes > this.bytes.length - from) throw new RangeError('the bytes end too early')
    this.at = from + bytes
    return from
  }

  /** Bitcoin's CompactSize: 1, 3, 5 or 9 bytes. */
  compactSize(): number {
    const first = this.bytes.readUInt8(this.skip(1))
    if (first < 0xfd) return first
    if (first === 0xfd) return this.bytes.readUInt16LE(this.skip(2))
    if (first === 0xfe) return this.bytes.readUInt32LE(this.skip(4))
    throw new RangeError('more than any block holds')
  }

  /** Throws unless everything was read. */
  end(): void {
    if (this.at !== this.bytes.length) throw new RangeError('there are bytes too many')
  }
}

/** Reads the transaction at the reader's position, with or without witnesses (BIP-144). Throws RangeError if there is none. */
export function readTransaction(reader: ByteReader, visitor: TransactionVisitor): RawTransaction {
  const { bytes } = reader
  const from = reader.skip(VERSION_BYTES)
  // A transaction without inputs does not exist, so that a count of 0 is the marker.
  const hasWitness = bytes.readUInt8(reader.at) === 0
  if (hasWitness && bytes.readUInt8(reader.skip(MARKER_AND_FLAG_BYTES) + 1) !== 1) {
    throw new RangeError('a transaction has no inputs')
  }
  const inputsAt = reader.at
  const inputs = reader.compactSize()
  for (let input = 0; input < inputs; input += 1) {
    const outpointAt = reader.skip(OUTPOINT_BYTES)
    visitor.onInput?.(outpointAt)
    reader.skip(reader.compactSize())
    reader.skip(SEQUENCE_BYTES)
  }
  const outputs = reader.compactSize()
  for (let vout = 0; vout < outputs; vout += 1) {
    const amountAt = reader.skip(AMOUNT_BYTES)
    const scriptFrom = reader.skip(reader.compactSize())
    visitor.onOutput?.(vout, amountAt, scriptFrom, reader.at)
  }
  const outputsUntil = reader.at
  for (let input = 0; hasWitness && input < inputs; input += 1) {
    for (let items = reader.compactSize(); items > 0; items -= 1) reader.skip(reader.compactSize())
  }
  reader.skip(LOCK_TIME_BYTES)
  return { from, until: reader.at, inputsAt, outputsUntil, hasWitness }
}

/** A transaction's bytes without marker, flag and witnesses: what its id is the hash of. */
function strippedBytes(bytes: Buffer, transaction: RawTransaction): Uint8Array {
  const { from, until, inputsAt, outputsUntil, hasWitness } = transaction
  if (!hasWitness) return bytes.subarray(from, until)
  return Buffer.concat([
    bytes.subarray(from, from + VERSION_BYTES),
    bytes.subarray(inputsAt, outputsUntil),
    bytes.subarray(until - LOCK_TIME_BYTES, until),
  ])
}

/** The length of strippedBytes. */
export function strippedLength({ inputsAt, outputsUntil }: RawTransaction): number {
  return VERSION_BYTES + outputsUntil - inputsAt + LOCK_TIME_BYTES
}

/** A transaction's id in the byte order of the protocol. */
export function txidOf(bytes: Buffer, transaction: RawTransaction): Buffer {
  return doubleSha256(strippedBytes(bytes, transaction))
}

/** The id of the transaction that these bytes are. Throws RangeError if they are none. */
export function txidOfBytes(raw: Uint8Array): Buffer {
  const reader = new ByteReader(raw)
  const transaction = readTransaction(reader, {})
  reader.end()
  return txidOf(reader.bytes, transaction)
}

/** Bitcoin's hash of everything: SHA-256, twice. */
export function doubleSha256(bytes: Uint8Array): Buffer {
  return hash('sha256', hash('sha256', bytes, 'buffer'), 'buffer')
}
