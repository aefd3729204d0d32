import type { MessageInitShape } from '@bufbuild/protobuf'
import type { Caller, CallerSchema } from './gen/tollward/enforcement/v1/block_pb.ts'

/** Which of the things that a token says names a caller. */
export type CallerKind = 'token' | 'grant' | 'client' | 'subject'

/** Whoever presents an access token, by one of the things that it says. */
export interface CallerName {
  readonly kind: CallerKind
  /** For a token and a grant its SHA-256, lower-case hexadecimal; for a client and a subject its id. */
  readonly value: string
}

/** Bytes of an id in UTF-8: what base64url makes of more does not fit into a key of a bucket. */
export const CALLER_ID_BYTES_MAX = 180

/** Blocks of callers: no writer adds one beyond, and every decision point holds that many. About 200 bytes each there. */
export const CALLER_BLOCKS_MAX = 100_000

const HASH = /^[0-9a-f]{64}$/
const KEY = /^(token|grant|client|subject)\.([-_0-9A-Za-z]+)$/

/** Whether the value can name a caller of the kind: 64 hexadecimal digits for a hash; an id of some bytes, without control characters. */
export function isCallerName({ kind, value }: CallerName): boolean {
  if (kind === 'token' || kind === 'grant') return HASH.test(value)
  const bytes = Buffer.byteLength(value)
  return bytes > 0 && bytes <= CALLER_ID_BYTES_MAX && value.isWellFormed() && !/\p{Cc}/u.test(value)
}

/** The key of a caller in the bucket `blocks`: its kind, ".", and the hash, or the id in base64url. RangeError if it can't be named. */
export function callerKey(caller: CallerName): string {
  const { kind, value } = caller
  if (!isCallerName(caller)) throw new RangeError(`no ${kind} can be named so`)
  return `${kind}.${kind === 'token' || kind === 'grant' ? value : Buffer.from(value).toString('base64url')}`
}

/** Reads such a key back. Undefined if it is none, also where another key says the same. */
export function parseCallerKey(key: string): CallerName | undefined {
  const match = KEY.exec(key)
  if (!match?.[1] || !match[2]) return undefined
  const kind = match[1] as CallerKind
  const isHash = kind === 'token' || kind === 'grant'
  const caller = { kind, value: isHash ? match[2] : Buffer.from(match[2], 'base64url').toString() }
  return isCallerName(caller) && callerKey(caller) === key ? caller : undefined
}

const FIELDS = { tokenHash: 'token', grantHash: 'grant', clientId: 'client', subject: 'subject' } as const

/** Whom a message names. Undefined if nobody, or by what no key can hold. */
export function readCaller(message: Caller | undefined): CallerName | undefined {
  if (message?.by.case === undefined) return undefined
  const caller = { kind: FIELDS[message.by.case], value: message.by.value }
  return isCallerName(caller) ? caller : undefined
}

/** The message that names a caller. */
export function writeCaller({ kind, value }: CallerName): MessageInitShape<typeof CallerSchema> {
  switch (kind) {
    case 'token':
      return { by: { case: 'tokenHash', value } }
    case 'grant':
      return { by: { case: 'grantHash', value } }
    case 'client':
      return { by: { case: 'clientId', value } }
    case 'subject':
      return { by: { case: 'subject', value } }
  }
}

/** Writes a caller as people do: client:shop. */
export function formatCaller({ kind, value }: CallerName): string {
  return `${kind}:${value}`
}
