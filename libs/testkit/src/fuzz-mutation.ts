/** A read or write of a conversation. */
export interface Piece {
  /** Who says it: the target knows what the numbers mean, which begin with 0. */
  readonly lane: number
  readonly bytes: Buffer
  /** Bytes that were missed before it, and at its end. */
  readonly skipped: number
  readonly unseen: number
}

export type Conversation = readonly Piece[]

/** From 0 to below `below`. */
export type Random = (below: number) => number

/** The same numbers for the same seed (Marsaglia's xorshift, 32 bits). */
export function randomNumbers(seed: number): Random {
  let state = Math.imul(seed + 1, 0x9e3779b1) || 1
  return (below) => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) % Math.max(1, below)
  }
}

export interface MutationOptions {
  readonly random: Random
  /** Of what conversations may be made further. */
  readonly corpus: readonly Conversation[]
  /** Words of the protocol. */
  readonly dictionary: readonly Buffer[]
  readonly lanes: number
  /** Of a whole conversation. */
  readonly bytesMax: number
}

const PIECES_MAX = 48
/** Changes at once. */
const CHANGES_MAX = 8
const TELLING_BYTES = [0, 1, 9, 10, 13, 32, 48, 58, 127, 128, 255] as const
const TELLING_NUMBERS = [0, 1, 2, 5, 9, 16, 63, 127, 128, 255, 256, 4096, 16_384, 65_535, 65_536, 2 ** 24 - 1] as const
const NUMBER = /[0-9]{1,16}/g

/** Another conversation, made of one that is known by some small changes. */
export function mutated(from: Conversation, options: MutationOptions): Conversation {
  const { random, bytesMax } = options
  const pieces = [...from]
  let changes = 1
  while (changes < CHANGES_MAX && random(2) === 0) changes += 1
  for (; changes > 0; changes--) {
    const at = random(pieces.length)
    const piece = pieces[at]
    if (!piece || random(4) === 0) changePieces(pieces, at, options)
    else pieces[at] = { ...piece, bytes: changedBytes(piece.bytes, options) }
  }
  let bytes = 0
  return pieces.slice(0, PIECES_MAX).filter((piece) => {
    bytes += piece.bytes.length
    return bytes <= bytesMax
  })
}

function changePieces(pieces: Piece[], at: number, options: MutationOptions): void {
  const { random, corpus, dictionary, lanes } = options
  const piece = pieces[at]
  const other = corpus[random(corpus.length)] ?? []
  const kind = piece ? random(12) : 11
  if (!piece || kind === 11) {
    const from = random(other.length)
    pieces.splice(at, 0, ...other.slice(from, from + 1 + random(4)))
    return
  }
  const next = pieces[at + 1]
  const cut = random(piece.bytes.length + 1)
  switch (kind) {
    case 0:
    case 1: {
      const [head, tail] = [piece.bytes.subarray(0, cut), piece.bytes.subarray(cut)]
      pieces.splice(at, 1, { ...piece, bytes: head, unseen: 0 }, { ...piece, bytes: tail, skipped: 0 })
      return
    }
    case 2:
      if (next?.lane === piece.lane)
        pieces.splice(at, 2, { ...piece, bytes: Buffer.concat([piece.bytes, next.bytes]), unseen: next.unseen })
      return
    case 3:
      pieces.splice(at, 0, piece)
      return
    case 4:
      pieces.splice(at, 1)
      return
    case 5:
      if (next) pieces.splice(at, 2, next, piece)
      return
    case 6:
    case 9: {
      const word = dictionary[random(dictionary.length)]
      if (word) pieces.splice(at + random(2), 0, { ...piece, bytes: word, skipped: 0, unseen: 0 })
      return
    }
    case 10:
      pieces[at] = { ...piece, bytes: piece.bytes.subarray(0, cut), unseen: piece.bytes.length - cut }
      return
    case 7:
      pieces[at] = { ...piece, bytes: piece.bytes.subarray(cut), skipped: random(2) === 0 ? cut : telling(random) }
      return
    default:
      pieces[at] = { ...piece, lane: random(lanes) }
  }
}

function changedBytes(bytes: Buffer, options: MutationOptions): Buffer {
  const { random, corpus, dictionary } = options
  const at = random(bytes.length)
  const length = 1 + random(Math.min(16, bytes.length - at))
  const word = dictionary[random(dictionary.length)] ?? Buffer.alloc(0)
  switch (random(12)) {
    case 0:
      return written(bytes, at, [(bytes[at] ?? 0) ^ (1 << random(8))])
    case 1:
      return written(bytes, at, [random(256)])
    case 2:
      return written(bytes, at, [TELLING_BYTES[random(TELLING_BYTES.length)] ?? 0])
    case 3:
      return written(bytes, at, [(bytes[at] ?? 0) + random(9) - 4])
    case 4:
      return spliced(bytes, at, length, Buffer.alloc(0))
    case 5:
      return spliced(bytes, at, 0, bytes.subarray(at, at + length))
    case 6:
    case 7:
      return spliced(bytes, at, 0, word)
    case 8:
      return written(bytes, at, word)
    case 9:
      return withLength(bytes, at, random)
    case 10:
      return withNumber(bytes, random)
    default: {
      const other = corpus[random(corpus.length)] ?? []
      const donor = other[random(other.length)]?.bytes ?? bytes
      return Buffer.concat([bytes.subarray(0, at), donor.subarray(random(donor.length))])
    }
  }
}

function written(bytes: Buffer, at: number, what: Iterable<number>): Buffer {
  const changed = Buffer.from(bytes)
  changed.set([...what].slice(0, Math.max(0, changed.length - at)), Math.min(at, changed.length))
  return changed
}

function spliced(bytes: Buffer, at: number, drop: number, insert: Buffer): Buffer {
  return Buffer.concat([bytes.subarray(0, at), insert, bytes.subarray(at + drop)])
}

/** A length as frames have it, most often that of the bytes behind it, or of some of them. */
function withLength(bytes: Buffer, anywhere: number, random: Random): Buffer {
  // Most often it comes first.
  const at = random(2) === 0 ? 0 : anywhere
  const size = 1 + random(4)
  const behind = Math.max(0, bytes.length - at - size)
  const length = [behind, behind - 6, behind - 5, random(behind + 1), telling(random)][random(5)] ?? 0
  const field = Buffer.alloc(size)
  field.writeUIntBE(Math.max(0, length) % 2 ** (8 * size), 0, size)
  return written(bytes, at, field)
}

/** Digits that say another number. */
function withNumber(bytes: Buffer, random: Random): Buffer {
  const found = [...bytes.toString('latin1').matchAll(NUMBER)]
  const one = found[random(found.length)]
  if (!one) return bytes
  const number = [Number(one[0]) + random(5) - 2, telling(random), random(100), bytes.length][random(4)] ?? 0
  return spliced(bytes, one.index, one[0].length, Buffer.from(String(Math.max(0, number))))
}

function telling(random: Random): number {
  return TELLING_NUMBERS[random(TELLING_NUMBERS.length)] ?? 0
}
