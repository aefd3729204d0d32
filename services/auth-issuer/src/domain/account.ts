import { AppError } from '@tollward/errors'

/** Characters of a name: an address for mail fits. */
const NAME_LENGTH_MAX = 128

const NAME = /^[\p{L}\p{N}](?:[\p{L}\p{M}\p{N} ._@+'-]*[\p{L}\p{M}\p{N}])?$/u

/** A person who can sign in, as they stand at one moment. */
export interface Person {
  /** The "sub" of their tokens: random, never anybody else's. */
  readonly subject: string
  readonly name: string
  readonly enabled: boolean
  /** What they have (sessions, grants, tokens) is good only under the generation that it was given in. */
  readonly generation: string
  readonly createdAtMs: number
  readonly passwordChangedAtMs: number
}

/** A name as it is kept: in NFKC. AppError `invalid_argument` says what a name is. */
export function accountName(text: string): string {
  const name = text.normalize('NFKC').trim()
  if (name.length <= NAME_LENGTH_MAX && NAME.test(name)) return name
  throw new AppError(
    'invalid_argument',
    `A name begins and ends with a letter or digit, may have . _ @ + ' - and spaces between, and at most ${NAME_LENGTH_MAX} characters.`,
  )
}

/** What two spellings of one name have in common: a name is one person's, however it is written. */
export function foldedName(text: string): string {
  return text.normalize('NFKC').trim().toLowerCase().normalize('NFKC')
}
