import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import {
  type AddressRange,
  CALLER_ID_BYTES_MAX,
  type CallerName,
  callerKey,
  formatCaller,
  formatRange,
  parseRange,
  rangeKey,
  readCaller,
  writeCaller,
} from '@tollward/contracts'
import { type Block, BlockSchema, type Caller as CallerMessage } from '@tollward/contracts/enforcement'
import { namesOnlyGuarded, whyTooWide } from '@tollward/documents'
import { AppError } from '@tollward/errors'
import type { Caller } from './access.ts'

const RANGE_FORMAT = 1
const CALLER_FORMAT = 2
/** Every block ends by itself; what should last is a rule of the firewall in front. */
const BLOCK_TTL_SECONDS_MAX = 30 * 24 * 3600
const REASON_LENGTH_MAX = 200

/** Whom a block names: a range of addresses, or a caller in its place. */
export interface Blocked {
  readonly cidr: string
  readonly caller?: CallerMessage | undefined
}

/** What an operator asks for. */
export interface BlockRequest extends Blocked {
  readonly ttlSeconds: number
  readonly reason: string
}

/** Reads an address or CIDR. AppError `invalid_argument` says what is wrong with it. */
function readRange(cidr: string): AddressRange {
  const range = parseRange(cidr)
  if (range) return range
  throw new AppError(
    'invalid_argument',
    'Give an address or a CIDR without host bits, such as 192.0.2.7 or 192.0.2.0/24.',
  )
}

/** Reads a caller. AppError `invalid_argument` says what is wrong with it; what was sent is not repeated, it may be a token. */
function readBlockedCaller(message: CallerMessage): CallerName {
  const caller = readCaller(message)
  if (caller) return caller
  const ids = `the id of a client or subject of 1 to ${CALLER_ID_BYTES_MAX} bytes`
  throw new AppError('invalid_argument', `Give the SHA-256 of a token or grant in lower-case hexadecimal, or ${ids}.`)
}

/** The key of what is blocked in the bucket. AppError `invalid_argument` says what is wrong with it. */
export function blockedKey({ cidr, caller }: Blocked): string {
  if (!caller) return rangeKey(readRange(cidr))
  if (cidr === '') return callerKey(readBlockedCaller(caller))
  throw new AppError('invalid_argument', 'Give an address or CIDR, or a caller, and not both.')
}

/** The block that an operator asks for. AppError `invalid_argument` or `failed_precondition` says why there is none. */
export function operatorBlock(
  { cidr, caller, ttlSeconds, reason }: BlockRequest,
  context: { by: Caller; guarded: readonly AddressRange[]; nowMs: number },
): Block {
  const target = caller ? callerTarget(caller, context.by) : rangeTarget(cidr, context.guarded)
  if (ttlSeconds < 1 || ttlSeconds > BLOCK_TTL_SECONDS_MAX) {
    throw new AppError(
      'invalid_argument',
      `Say how long: a block lasts 1 to ${BLOCK_TTL_SECONDS_MAX} seconds (30 days).`,
    )
  }
  if (reason.length > REASON_LENGTH_MAX) {
    throw new AppError('invalid_argument', `A reason has at most ${REASON_LENGTH_MAX} characters.`)
  }
  return create(BlockSchema, {
    ...target,
    reason,
    decidedBy: `operator:${context.by.clientId}`,
    decidedAt: timestampFromMs(context.nowMs),
    expiresAt: timestampFromMs(context.nowMs + ttlSeconds * 1000),
  })
}

function rangeTarget(cidr: string, guarded: readonly AddressRange[]) {
  const range = readRange(cidr)
  const why = whyTooWide(range)
  if (why !== undefined) throw new AppError('invalid_argument', `${cidr} ${why}. Block parts of it.`)
  if (namesOnlyGuarded(range, guarded)) {
    const why = 'it names only addresses that are guarded: 127.0.0.1, ::1 and the nodes themselves are never blocked'
    throw new AppError('failed_precondition', `${formatRange(range)} is not blocked: ${why}.`)
  }
  return { format: RANGE_FORMAT, ...range }
}

function callerTarget(message: CallerMessage, by: Caller) {
  const caller = readBlockedCaller(message)
  const own = { token: by.tokenHash, grant: by.grantHash, client: by.clientId, subject: by.subject }
  if (own[caller.kind] === caller.value) {
    const why = 'that is who asks, and nobody blocks themselves; another operator can'
    throw new AppError('failed_precondition', `${formatCaller(caller)} is not blocked: ${why}.`)
  }
  return { format: CALLER_FORMAT, caller: writeCaller(caller) }
}
