/** What a refusal with one reason code says and which HTTP status it has. */
interface Meaning {
  readonly status: number
  readonly title: string
  /** One sentence that says what to do next; a case may have a more exact one. */
  readonly detail: string
}

/**
 * The one list of reason codes. They are stable: clients, alerts and dashboards read them. Up to `pass-exhausted` they stand
 * in the order in which a request is refused (first match wins), so nobody is asked to pay for what would still be refused.
 */
export const REASONS = {
  'malformed-request': {
    status: 400,
    title: 'Ambiguous request',
    detail: 'The request can be read in more than one way; send it in canonical form.',
  },
  'headers-too-large': {
    status: 431,
    title: 'Header fields too large',
    detail: 'Send fewer or shorter header fields.',
  },
  blocked: {
    status: 403,
    title: 'Source is blocked',
    detail: 'This address is blocked for now; ask the operator of this API if you think that is wrong.',
  },
  'source-limit': {
    status: 429,
    title: 'Too many requests from this address',
    detail: 'Wait as long as Retry-After says, then go on more slowly.',
  },
  'token-missing': {
    status: 401,
    title: 'Access token needed',
    detail: 'Get an access token from the issuer and send it as "Authorization: Bearer <token>".',
  },
  'token-invalid': {
    status: 401,
    title: 'Access token is not valid',
    detail: 'The token is unknown, expired or revoked; get a new one from the issuer.',
  },
  'proof-missing': {
    status: 401,
    title: 'Proof of possession needed',
    detail: 'The token is bound to a key: send a proof that you have it.',
  },
  'proof-invalid': {
    status: 401,
    title: 'Proof of possession is not valid',
    detail: 'The proof is not one of the key that the token is bound to, for this request.',
  },
  'caller-blocked': {
    status: 403,
    title: 'Caller is blocked',
    detail: 'This client or person is blocked for now; ask the operator of this API if you think that is wrong.',
  },
  'no-rule': {
    status: 403,
    title: 'Not served',
    detail: 'No rule of this API admits this method and path.',
  },
  'rule-denied': {
    status: 403,
    title: 'Denied by rule',
    detail: 'A rule of this API denies this request.',
  },
  'self-registered': {
    status: 403,
    title: 'Not for self-registered clients',
    detail:
      'Clients that registered themselves may use only what they pay for; ask the operator of this API for a client.',
  },
  'scope-missing': {
    status: 403,
    title: 'Scope is missing',
    detail: 'Get an access token that has every scope named in WWW-Authenticate.',
  },
  'claim-missing': {
    status: 403,
    title: 'Claim is missing',
    detail: 'The token does not say of its holder what this rule wants; ask the operator of this API.',
  },
  'binding-missing': {
    status: 403,
    title: 'Token is bound to no key',
    detail: 'Get an access token that is bound to a key, as this rule wants, and prove that you have the key.',
  },
  'audience-mismatch': {
    status: 403,
    title: 'Token is for another API',
    detail: 'Get an access token whose audience is this API.',
  },
  'nothing-to-redeem': {
    status: 403,
    title: 'Transaction pays nothing of yours',
    detail: 'You have no open invoice that this transaction could pay; ask for an invoice first, then pay it.',
  },
  'client-limit': {
    status: 429,
    title: 'Too many requests',
    detail: 'Wait as long as Retry-After says, then go on more slowly.',
  },
  'payment-required': {
    status: 402,
    title: 'Payment needed',
    detail: 'Ask for an invoice at the given address, pay it, and repeat this request with X-Bitcoin-Txid.',
  },
  'payment-not-seen': {
    status: 402,
    title: 'Payment not seen yet',
    detail: 'The transaction is not known here yet; repeat this request after Retry-After seconds.',
  },
  'payment-pending': {
    status: 402,
    title: 'Payment not confirmed yet',
    detail: 'The payment needs more confirmations; repeat this request after Retry-After seconds.',
  },
  'payment-insufficient': {
    status: 402,
    title: 'Payment does not suffice',
    detail: 'The payment is too small or came too late; ask for another invoice.',
  },
  'pass-exhausted': {
    status: 402,
    title: 'Pass is used up',
    detail: 'What this payment bought is used up; ask for another invoice.',
  },
  unavailable: {
    status: 503,
    title: 'Cannot decide now',
    detail: 'A part that decides about requests is not reachable; repeat the request after Retry-After seconds.',
  },
  'untrusted-proxy': {
    status: 403,
    title: 'Not a configured proxy',
    detail: 'Only proxies named in the configuration may ask here.',
  },
  'too-busy': {
    status: 503,
    title: 'Too much at once',
    detail: 'The gateway has as much under way as it may; repeat the request after Retry-After seconds.',
  },
  'method-unsupported': {
    status: 501,
    title: 'Method is not supported',
    detail: 'Use one of the methods of RFC 9110.',
  },
  'request-timeout': {
    status: 408,
    title: 'Request took too long',
    detail: 'Send the whole request sooner.',
  },
  'body-too-large': {
    status: 413,
    title: 'Body too large',
    detail: 'Send a smaller body.',
  },
  'upstream-failed': {
    status: 502,
    title: 'API is not reachable',
    detail: 'The API behind this gateway gave no usable answer; try again later.',
  },
  'upstream-timeout': {
    status: 504,
    title: 'API took too long',
    detail: 'The API behind this gateway did not answer in time; try again later.',
  },
} as const satisfies Record<string, Meaning>

export type Reason = keyof typeof REASONS

const TYPE_PREFIX = 'https://tollward.dev/problems/'

/** The `type` of a problem (RFC 9457, 3.1.1). */
export function problemType(reason: Reason): string {
  return TYPE_PREFIX + reason
}
