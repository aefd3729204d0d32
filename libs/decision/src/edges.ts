/*
 * What a decision does when something it depends on is gone, and the numbers that go with it. A feed is stale when the server
 * was not heard on it for FEED_STALE_AFTER_MS.
 */

interface Edge {
  /** closed: requests that need it are refused with 503. open: they are decided by what is known. */
  readonly fails: 'open' | 'closed'
  readonly because: string
}

export const EDGES = {
  introspector: { fails: 'closed', because: 'a token that nobody vouches for may be forged' },
  revocations: { fails: 'closed', because: 'a token that was revoked meanwhile would go on working' },
  verifier: { fails: 'closed', because: 'a request that nobody charged would be free' },
  quotes: { fails: 'open', because: 'a refusal without a price is a refusal all the same' },
  documents: { fails: 'open', because: 'policies last until they are replaced; the ones in force stay in force' },
  passes: {
    fails: 'open',
    because:
      'what is spent was leased before, and little of it is unrecorded; more has to be asked for, which fails closed',
  },
  blocks: {
    fails: 'open',
    because: 'known blocks hold until they expire; refusing everyone would do the work of an attacker',
  },
  'caller blocks full': {
    fails: 'open',
    because:
      'the blocks in force stay in force, and only operators write such blocks; admin-api tells them long before, and each that is not held is counted',
  },
  'source table full': {
    fails: 'open',
    because: 'the oldest source begins anew; refusing new ones would shut out honest ones',
  },
  'rates of others': {
    fails: 'open',
    because:
      'without the bus each replica limits by what it admits itself; refusing everyone would cost more than a limit that is too wide',
  },
  'rate told too late': {
    fails: 'open',
    because:
      'a flood of keys must not flood the bus; the ones near their limit are told first, what is lost is counted',
  },
  'proof table full': {
    fails: 'closed',
    because:
      'a proof that is not remembered could be replayed; the table holds more than one process can verify in its window',
  },
  'call record': { fails: 'open', because: 'a request must not wait for its record; what is lost is counted' },
} as const satisfies Record<string, Edge>

/** Heartbeats come every second; five missed ones are no hiccup any more. */
export const FEED_STALE_AFTER_MS = 5000

/** Asking introspector and verifier; below the time that proxies give us (deploy/envoy: 1 s). */
export const CALL_TIMEOUT_MS = 800

/** What a client is told to wait after 503. */
export const UNAVAILABLE_RETRY_SECONDS = 2

/** Tokens kept; some 300 bytes each beside the internal token, and as many again where a person and a grant are its own. */
export const TOKENS_MAX = 150_000
/** Clients' scopes and audiences that are kept once for all tokens that have the same; those of a thousand clients, a few each. */
export const SHARED_RIGHTS_MAX = 5000
/** Tokens known to be worth nothing; a table of their own, so that a flood of them pushes out no good one. */
export const WORTHLESS_TOKENS_MAX = 50_000
/** A random string does not become a token later; a short time suffices against one that is sent again and again. */
export const WORTHLESS_FOR_MS = 2000
/**
 * Known tokens of a client or person whose tokens end are refused for this long without asking anybody; then the issuer is asked, in
 * case one was issued after the end and known here before it was heard.
 */
export const ENDED_FOR_MS = 500
/** Introspections under way at once; beyond that a token is refused with 503 rather than queued. */
export const INTROSPECTIONS_MAX = 256
/**
 * An internal token is replaced this long before it expires, while requests go on with the old one. Less than what the
 * introspector's own answers have left at least, so that the next one it gives is a new one.
 */
export const REFRESH_BEFORE_MS = 14_000
/** It must last at least as long as a request may need to reach upstream. */
export const INTERNAL_TOKEN_LEFT_MIN_MS = 5000
/** Between two attempts to replace it. */
export const REFRESH_EVERY_MS = 1000
/** Revocations remembered, against an introspection that was answered before them. */
export const REVOCATIONS_MAX = 100_000
/** At start, revocations are read from this long ago; longer than any introspection can be under way or cached elsewhere. */
export const REVOCATION_MEMORY_MS = 600_000
/** token-introspector trusts its memory only while it has had every revocation within this time. */
export const INTROSPECTOR_STALE_AFTER_MS = 3000
/**
 * token-introspector may not have heard yet what was heard here: for this long after a revocation or change, an answer about what
 * it concerns counts only if it comes from the issuer itself. More than INTROSPECTOR_STALE_AFTER_MS and an answer's way here.
 */
export const INTROSPECTOR_LAG_MAX_MS = 5000
/** Questions about one token until there is an answer that no revocation overtook. */
export const INTROSPECTION_ATTEMPTS_MAX = 4

/** How old a DPoP proof may be by its iat: the time in which a stolen one might be replayed at another process. */
export const PROOF_AGE_MAX_MS = 60_000
/** How far a client's clock may be ahead. */
export const PROOF_AHEAD_MAX_MS = 10_000
/** Keys kept ready to verify with; others are read from the proof again, which takes as long as verifying. */
export const PROOF_KEYS_MAX = 10_000
/** Proofs remembered as used; some 60 bytes each. */
export const PROOFS_MAX = 500_000

/** Sources and clients whose rate is known, each table. */
export const RATE_KEYS_MAX = 200_000
/** Between two tellings of what was admitted; what is a twentieth of its limit doesn't wait for it. */
export const RATES_TOLD_EVERY_MS = 20
/** Keys, each table, of which the others have not been told yet; more are never told. */
export const RATES_UNTOLD_MAX = 10_000
/** Uses told a second; some 2 MB/s on the bus and a few hundredths of a core to write and as many to read. The rest waits. */
export const RATES_TOLD_LIMIT = { requests: 20_000, perSeconds: 1 } as const
/** Uses in a message; with keys of RATE_KEY_LENGTH_MAX still below the megabyte that the bus takes. */
export const RATES_PER_MESSAGE_MAX = 250
/** UTF-16 code units of a key that is told: a policy, a rule and whom it counts are far shorter. */
export const RATE_KEY_LENGTH_MAX = 1024
/** Other replicas of which we know which message comes next. */
export const RATE_DECIDERS_MAX = 1000

/** A lease is this part of a pass's quota: what others cannot serve meanwhile. */
export const LEASE_SHARE = 1 / 20
/** Of a large quota, enough for a second or so at full load. */
export const LEASE_REQUESTS_MAX = 5000
/** When less than this part of a chunk is left, the next one is asked for. */
export const LEASE_LOW_WATER = 1 / 4
/** A pass from which nothing could be leased is asked about again after this time: another holder may have given back. */
export const DRY_FOR_MS = 1000
/** A chunk of which nothing was served for so long is given back, for others to serve. */
export const LEASE_IDLE_MS = 10_000
/** Between two looks at which chunks are idle or have to be renewed. */
export const LEASE_TICK_MS = 1000
/** Chunks that are renewed or given back at once by such a look; the others come next. */
export const LEASES_AT_ONCE_MAX = 256
/** Requests that wait for one pass's lease or record; more are refused with 503 rather than queued. */
export const LEASE_WAITING_MAX = 1000

/** A redemption that failed is not repeated for the same client, plan and txid within this time. */
export const REDEMPTION_KEPT_MS = 1000
export const REDEMPTIONS_MAX = 10_000
/** Redemptions that one client may ask for, whatever txids it sends. */
export const REDEMPTION_LIMIT = { requests: 10, perSeconds: 1 } as const

/** A price is told beside a refusal, which goes out without it rather than too late for the proxy. */
export const QUOTE_TIMEOUT_MS = 500
/** A price, or that it could not be had, is told again for so long before it is asked for again. */
export const QUOTE_KEPT_MS = 2000
export const QUOTES_MAX = 10_000
/** Prices under way at once; beyond, refusals name none. */
export const QUOTES_AT_ONCE_MAX = 64
/** Prices that one client may ask for, whatever plans it tries. */
export const QUOTE_LIMIT = { requests: 5, perSeconds: 1 } as const

/** Of admissions, one in so many is recorded. */
export const ADMISSION_SAMPLE = 100
/** Refusals of one source recorded one by one in each window; the rest is folded into one record with a count. */
export const RECORDS_PER_SOURCE = 10
export const RECORD_WINDOW_MS = 1000
/** Sources folded apart from each other; those beyond are folded together. */
export const RECORD_SOURCES_MAX = 10_000
/** Records that wait for the bus. */
export const RECORD_QUEUE_MAX = 10_000
/** Records handed to the bus and not acknowledged yet. */
export const RECORDS_AT_ONCE_MAX = 64
/** At the end, records that still wait get this long. */
export const RECORD_DRAIN_MS = 2000

/** Requests that go on for long are looked at this often: whether their callers may still be served. */
export const WATCH_EVERY_MS = 25
