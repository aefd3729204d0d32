import { REASONS, type Reason } from '@tollward/decision'

/** Kinds of requests that run against authorizer and gateway while something fails. */
export const REQUESTS = {
  anonymous: 'to an anonymous rule',
  known: 'known token',
  fresh: 'token for the first time',
  worthless: 'no token of ours',
  unscoped: 'known token without the scope',
  blocked: 'from a blocked address',
  banned: 'known token of a blocked client',
  paid: 'pass, much quota',
  pinched: 'pass, little quota',
  unpaid: 'no pass',
  presented: 'a transaction that pays nothing',
} as const

export type RequestKind = keyof typeof REQUESTS

/** What comes of a request. */
export interface Expected {
  /** The API answers, or the refusal's reason. */
  readonly answer: 'passes' | Reason
  /** Milliseconds; an answer from memory comes at once. */
  readonly within: readonly [fromMs: number, toMs: number]
  /** Seconds. */
  readonly retryAfter?: number
  /** A refusal for want of payment names the price. */
  readonly price?: boolean
  /** What it is until it becomes that. */
  readonly first?: 'passes'
}

/** From memory: some milliseconds; the bound is what a busy machine may make of them. */
const AT_ONCE = [0, 600] as const
const AFTER_200_MS = [190, 800] as const
/** The deadlines of questions: 800 ms, for prices 500 ms; what is overdue is found every 100 ms. */
const AT_DEADLINE = [750, 1600] as const
const AT_PRICE_DEADLINE = [450, 1300] as const

const passes: Expected = { answer: 'passes', within: AT_ONCE }
const unavailable: Expected = { answer: 'unavailable', within: AT_ONCE, retryAfter: 2 }
const late: Expected = { ...unavailable, within: AT_DEADLINE }
const priceless: Expected = { answer: 'payment-required', within: AT_ONCE, price: false }

export type Expectations = Readonly<Record<RequestKind, Expected>>

/** While nothing fails. */
export const HEALTHY: Expectations = {
  anonymous: passes,
  known: passes,
  fresh: passes,
  worthless: { answer: 'token-invalid', within: AT_ONCE },
  unscoped: { answer: 'scope-missing', within: AT_ONCE },
  blocked: { answer: 'blocked', within: AT_ONCE },
  banned: { answer: 'caller-blocked', within: AT_ONCE },
  paid: passes,
  pinched: passes,
  unpaid: { answer: 'payment-required', within: AT_ONCE, price: true },
  presented: { answer: 'nothing-to-redeem', within: AT_ONCE },
}

/** Introspection gives no answer, or none that is one. */
const unknowable = (how: Expected): Expectations => ({ ...HEALTHY, fresh: how, worthless: how })
/** Neither leases nor redemptions nor prices. */
const unpayable = (how: Expected, price: Expected): Expectations => ({
  ...HEALTHY,
  pinched: { ...how, within: [0, how.within[1]], first: 'passes' },
  unpaid: price,
  presented: how,
})

/** What clients see while a service fails that decision points ask; what docs say of it. */
export const SERVICE_OUTAGES = {
  'token-introspector is stopped': unknowable(unavailable),
  'token-introspector takes 200 ms': {
    ...HEALTHY,
    fresh: { ...passes, within: AFTER_200_MS },
    worthless: { ...HEALTHY.worthless, within: AFTER_200_MS },
  },
  'token-introspector takes 2 s': unknowable(late),
  'token-introspector answers bytes that cannot be decoded': unknowable(unavailable),
  'token-introspector answers an empty message': unknowable(unavailable),
  // What can be read as the answer that a token is worth nothing is taken for it.
  'token-introspector answers another message': unknowable(HEALTHY.worthless),
  'token-introspector answers errors': unknowable(unavailable),
  'payment-verifier is stopped': unpayable(unavailable, priceless),
  'payment-verifier takes 200 ms': {
    ...HEALTHY,
    pinched: { ...passes, within: [0, AFTER_200_MS[1]] },
    unpaid: { ...HEALTHY.unpaid, within: AFTER_200_MS },
    presented: { ...HEALTHY.presented, within: AFTER_200_MS },
  },
  'payment-verifier takes 2 s': unpayable(late, { ...priceless, within: AT_PRICE_DEADLINE }),
  'payment-verifier answers bytes that cannot be decoded': unpayable(unavailable, priceless),
  'payment-verifier answers another message': unpayable(unavailable, priceless),
  'payment-verifier answers errors': unpayable(unavailable, priceless),
} as const satisfies Readonly<Record<string, Expectations>>

/** Nobody can be asked: whatever is in memory goes on. */
const unasked: Expectations = {
  ...HEALTHY,
  fresh: late,
  worthless: late,
  pinched: { ...late, within: [0, AT_DEADLINE[1]], first: 'passes' },
  unpaid: { ...priceless, within: AT_PRICE_DEADLINE },
  presented: late,
}
/** Nobody knows which tokens were revoked meanwhile. */
const untrusted: Expectations = {
  ...HEALTHY,
  known: unavailable,
  fresh: unavailable,
  worthless: unavailable,
  unscoped: unavailable,
  banned: unavailable,
  paid: unavailable,
  pinched: unavailable,
  unpaid: unavailable,
  presented: unavailable,
}

/** What clients see while NATS fails: at first, and once it was not heard for 5 s. */
export const NATS_OUTAGES: Readonly<Record<string, { readonly atFirst: Expectations; readonly later?: Expectations }>> =
  {
    'NATS is stopped': { atFirst: unasked, later: untrusted },
    'NATS answers nonsense': { atFirst: unasked, later: untrusted },
    'NATS takes 200 ms': {
      atFirst: {
        ...HEALTHY,
        fresh: { ...passes, within: AFTER_200_MS },
        worthless: { ...HEALTHY.worthless, within: AFTER_200_MS },
        pinched: { ...passes, within: [0, AFTER_200_MS[1]] },
        unpaid: { ...HEALTHY.unpaid, within: AFTER_200_MS },
        presented: { ...HEALTHY.presented, within: AFTER_200_MS },
      },
    },
    'NATS takes 2 s': { atFirst: unasked },
  }

/** Kinds whose answer no outage changes are told of in words. */
const TOLD = ['known', 'fresh', 'worthless', 'paid', 'pinched', 'unpaid', 'presented'] as const satisfies RequestKind[]

/** The tables as documentation has them: Markdown, a line for each outage, and what differs from how it is otherwise. */
export function documentedOutages(): string[] {
  const rows: (readonly [string, Expectations])[] = [['nothing fails', HEALTHY]]
  for (const outage of Object.entries(SERVICE_OUTAGES)) rows.push(outage)
  for (const [name, { atFirst, later }] of Object.entries(NATS_OUTAGES)) {
    rows.push([name, atFirst])
    if (later) rows.push([`${name}, not heard for 5 s`, later])
  }
  const head = ['while', ...TOLD.map((kind) => REQUESTS[kind])]
  const lines = rows.map(([name, row]) => [
    name,
    ...TOLD.map((kind) => (row !== HEALTHY && row[kind] === HEALTHY[kind] ? '' : inWords(row[kind]))),
  ])
  return [head, head.map(() => '---'), ...lines].map((cells) => `| ${cells.join(' | ')} |`)
}

function inWords({ answer, within, price, first }: Expected): string {
  const outcome = answer === 'passes' ? 'passes' : `${REASONS[answer].status} \`${answer}\``
  const priced = price === undefined ? '' : price ? ', with the price' : ', without the price'
  const wait = WAITS.get(within[1])
  const when = wait !== undefined && within[0] === 0 && first === undefined ? `, some ${wait}` : wait && ` ${wait}`
  return `${first === undefined ? '' : 'passes, then '}${outcome}${priced}${when ?? ''}`
}

const WAITS = new Map<number, string>([
  [AFTER_200_MS[1], 'after 200 ms'],
  [AT_DEADLINE[1], 'after 800 ms'],
  [AT_PRICE_DEADLINE[1], 'after 500 ms'],
])
