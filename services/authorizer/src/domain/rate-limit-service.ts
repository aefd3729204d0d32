import { create, fromBinary, type MessageInitShape, toBinary } from '@bufbuild/protobuf'
import {
  RateLimitResponse_Code as Code,
  type RateLimitRequest,
  RateLimitRequestSchema,
  type RateLimitResponse_DescriptorStatusSchema,
  RateLimitResponseSchema,
  RateLimitResponse_RateLimit_Unit as Unit,
} from '@tollward/contracts/envoy'
import {
  type Charge,
  type DescriptorLimit,
  matchDescriptor,
  type RateLimitIndex,
  type RateTable,
} from '@tollward/decision'
import { AppError } from '@tollward/errors'

/** What limits are counted in, and by which they are. */
export interface RateLimitWorld {
  readonly index: RateLimitIndex
  readonly rates: RateTable
  /** Of values of descriptors, which may be secret: SHA-256. */
  readonly hash: (text: string) => string
}

/** What came of a question: within all limits, over one, over one that only observes, or under no limit at all. */
export type RateLimitOutcome = 'within' | 'over' | 'would-be-over' | 'no-limit'

interface Counted {
  readonly found: DescriptorLimit
  readonly charge: Charge
}

const UNITS: ReadonlyMap<number, Unit> = new Map([
  [1, Unit.SECOND],
  [60, Unit.MINUTE],
  [3600, Unit.HOUR],
  [86_400, Unit.DAY],
])

/** More hits than any limit has. */
const HITS_MAX = 2_000_000n

/**
 * Answers envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit. Every descriptor is looked at; if one is over its limit the
 * request is, and counts under none of them. Throws AppError invalid_argument for what is no question: the proxy does then what it
 * does without an answer.
 */
export function shouldRateLimit(
  bytes: Uint8Array,
  world: RateLimitWorld,
  nowMs: number,
): { readonly answer: Uint8Array; readonly outcome: RateLimitOutcome } {
  const request = readRequest(bytes)
  const counted = request.descriptors.map(({ entries, hitsAddend, isNegativeHits }): Counted | undefined => {
    const found = matchDescriptor(world.index, request.domain, entries)
    if (!found) return undefined
    // Nothing is given back here: what conforms again with time needs no giving back. But nothing is charged either.
    const hits = isNegativeHits ? 0n : (hitsAddend ?? BigInt(request.hitsAddend || 1))
    return { found, charge: { key: keyOf(found, world.hash), limit: found.limit, hits: Number(min(hits, HITS_MAX)) } }
  })
  const { rates } = world
  const isOver = (charge: Charge) => !rates.check([charge], nowMs).conforms
  const enforced = merged(counted.filter((one) => one !== undefined && !one.found.observes))
  const observed = merged(counted.filter((one) => one?.found.observes === true))
  const wouldBeOver = observed.some(isOver)
  const over = new Set(enforced.filter(isOver).map(({ key }) => key))
  const rate = rates.takeAll(enforced, nowMs)
  for (const charge of observed) rates.takeAll([charge], nowMs)
  const statuses = counted.map((one) => (one ? statusOf(one, over, rates, nowMs) : { code: Code.OK }))
  const responseHeadersToAdd = rate.conforms
    ? tightest(counted, rates, nowMs)
    : refusalHeaders(counted, rate.charge, rate.retryAfterSeconds)
  const overallCode = rate.conforms ? Code.OK : Code.OVER_LIMIT
  const answer = create(RateLimitResponseSchema, { overallCode, statuses, responseHeadersToAdd })
  const within = counted.some((one) => one) ? 'within' : 'no-limit'
  const outcome = wouldBeOver ? 'would-be-over' : within
  return { answer: toBinary(RateLimitResponseSchema, answer), outcome: rate.conforms ? outcome : 'over' }
}

function readRequest(bytes: Uint8Array): RateLimitRequest {
  let request: RateLimitRequest
  try {
    request = fromBinary(RateLimitRequestSchema, bytes)
  } catch (error) {
    throw new AppError('invalid_argument', 'These bytes are no RateLimitRequest.', { cause: error })
  }
  if (request.domain === '' || request.descriptors.length === 0) {
    throw new AppError('invalid_argument', 'A RateLimitRequest has a domain and one descriptor at least.')
  }
  return request
}

function keyOf({ id, apart }: DescriptorLimit, hash: RateLimitWorld['hash']): string {
  return apart.length === 0 ? id : `${id} ${hash(JSON.stringify(apart))}`
}

/** Descriptors that fall under one limit with the same values count together. */
function merged(counted: readonly (Counted | undefined)[]): Charge[] {
  const charges = new Map<string, Charge>()
  for (const one of counted) {
    if (!one) continue
    const { key, limit, hits = 1 } = one.charge
    charges.set(key, { key, limit, hits: hits + (charges.get(key)?.hits ?? 0) })
  }
  return [...charges.values()]
}

function statusOf(
  { found, charge }: Counted,
  over: ReadonlySet<string>,
  rates: RateTable,
  nowMs: number,
): MessageInitShape<typeof RateLimitResponse_DescriptorStatusSchema> {
  const { requests, perSeconds } = found.limit
  const { requests: left, fullInMs } = rates.left(charge, nowMs)
  const seconds = Math.floor(fullInMs / 1000)
  return {
    code: over.has(charge.key) ? Code.OVER_LIMIT : Code.OK,
    currentLimit: { name: found.id, requestsPerUnit: requests, unit: UNITS.get(perSeconds) ?? Unit.UNKNOWN },
    limitRemaining: left,
    durationUntilReset: { seconds: BigInt(seconds), nanos: Math.floor((fullInMs - seconds * 1000) * 1e6) },
  }
}

/** Of the limits that hold, the one of which least is left. */
function tightest(counted: readonly (Counted | undefined)[], rates: RateTable, nowMs: number) {
  let least: { readonly found: DescriptorLimit; readonly requests: number; readonly fullInMs: number } | undefined
  for (const one of counted) {
    if (!one || one.found.observes) continue
    const left = rates.left(one.charge, nowMs)
    if (!least || left.requests < least.requests) least = { found: one.found, ...left }
  }
  return least ? headers(least.found, least.requests, Math.ceil(least.fullInMs / 1000)) : []
}

function refusalHeaders(counted: readonly (Counted | undefined)[], refusing: Charge, retryAfterSeconds: number) {
  const one = counted.find((other) => other?.charge.key === refusing.key)
  const seconds = Math.max(1, retryAfterSeconds)
  return [...(one ? headers(one.found, 0, seconds) : []), { key: 'retry-after', value: String(seconds) }]
}

/** Names of documents and rules have letters, digits and hyphens only. */
function headers({ id, limit }: DescriptorLimit, left: number, seconds: number) {
  return [
    { key: 'ratelimit-policy', value: `"${id}";q=${limit.requests};w=${limit.perSeconds}` },
    { key: 'ratelimit', value: `"${id}";r=${left};t=${seconds}` },
  ]
}

function min(a: bigint, b: bigint): bigint {
  return a < b ? a : b
}
