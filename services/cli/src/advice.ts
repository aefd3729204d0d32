import type { Reason } from '@tollward/decision/policies'

/**
 * What an operator does next, reason by reason: one line each. CLIENT, ADDRESS, POLICY and HOST stand for those of the
 * decision.
 */
export const ADVICE = {
  'malformed-request':
    'The caller, or a proxy on the way, spelled the request in a way that servers read differently. Have it sent as detail says; no policy changes that.',
  'headers-too-large':
    'The caller sends more than 100 header fields or 32 KiB of them: often cookies that were never deleted.',
  blocked: 'Why and until when: npx --no tollward blocks. To let it through: npx --no tollward blocks remove ADDRESS.',
  'source-limit':
    'One address asked too often; many people may share it. Compare with sourceLimit, and with limits by source, in: npx --no tollward get ApiPolicy POLICY.',
  'token-missing':
    'The request came without a token of ours, or a proxy removed it: look at Authorization where the request arrives.',
  'token-invalid':
    'The token ended, was revoked, or is none of ours. Revocations are in the audit; a client that never gets through probably asks another issuer.',
  'proof-missing':
    'The client has a token that is bound to a key and sent no proof: it has to sign each request (DPoP), or connect with its certificate.',
  'proof-invalid':
    'The proof is for another URL, method or token, was used before, or a clock is wrong. Behind a proxy, check that scheme and host arrive as the client used them.',
  'caller-blocked':
    'Why and until when: npx --no tollward blocks. To let it through: npx --no tollward blocks remove client:CLIENT, or as the list names it.',
  'no-rule':
    'Nothing serves this method and path. What there is: npx --no tollward simulate with the same request; add a rule to a policy for HOST, or have the caller ask for another path.',
  'rule-denied':
    'A rule says so in words. If it should not have matched: npx --no tollward simulate shows which other rules came close.',
  'self-registered':
    'The client registered by itself, and the rule costs nothing. Give it a Client document, or the rule a plan.',
  'scope-missing':
    'The token lacks a scope that the rule wants. What the client may ask for: npx --no tollward get Client CLIENT. It has to ask for it with its next token.',
  'claim-missing':
    'The token does not say what the rule wants in require.token.claims. Compare the rule with the claims of the internal token that the API gets.',
  'binding-missing':
    'The rule wants a token that is bound to a key. Set senderConstraint in: npx --no tollward get Client CLIENT.',
  'audience-mismatch':
    'The token is for another API. Compare audience in the rule with audience in: npx --no tollward get Client CLIENT.',
  'nothing-to-redeem':
    'The transaction pays no open invoice of this client. Look for it in: npx --no tollward payments --client CLIENT, and npx --no tollward invoices --client CLIENT.',
  'client-limit':
    'The caller is over the limit that is named; counted over all replicas. Raise it in: npx --no tollward get ApiPolicy POLICY, or have the client wait for Retry-After.',
  'payment-required': 'The client has no pass that is good: npx --no tollward passes --client CLIENT.',
  'payment-not-seen':
    'The node has not seen the transaction, or not yet: npx --no tollward invoices --client CLIENT, and whether the node is in step: npx --no tollward status.',
  'payment-pending': 'The payment waits for confirmations: npx --no tollward invoices --client CLIENT shows how many.',
  'payment-insufficient':
    'Too little or too late; it may have become credit: npx --no tollward payments --client CLIENT, npx --no tollward payments credits.',
  'pass-exhausted': 'All requests of the pass are used, or its time is over: npx --no tollward passes --client CLIENT.',
  unavailable:
    'Tollward could not decide: npx --no tollward status says which part is not ready. Stages that asked show where it waited.',
  'untrusted-proxy':
    'Who asks is not among the proxies of the authorizer. If it is yours, add ADDRESS to its trusted proxies.',
  'too-busy':
    'The gateway had as much under way as its settings allow. Look at what is slow behind it, or raise them; a client that floods is one for blocks.',
  'method-unsupported': 'The gateway does not serve this method.',
  'request-timeout': 'The client was too slow in sending its request.',
  'body-too-large': 'The body is larger than the gateway takes.',
  'upstream-failed': 'The decision was to admit; the API did not answer. Look at the API.',
  'upstream-timeout': 'The decision was to admit; the API took too long. Look at the API.',
} as const satisfies Record<Reason, string>

/** The advice for a reason, about this decision; undefined for an admission, or a reason that this version does not know. */
export function adviceFor(
  reason: string,
  decision: { readonly clientId: string; readonly address: string; readonly rule: string; readonly host: string },
): string | undefined {
  if (!Object.hasOwn(ADVICE, reason)) return undefined
  const named = {
    CLIENT: decision.clientId,
    ADDRESS: decision.address,
    POLICY: decision.rule.split('/')[0] ?? '',
    HOST: decision.host,
  }
  return Object.entries(named).reduce<string>(
    (text, [name, value]) => (value === '' ? text : text.replaceAll(new RegExp(`\\b${name}\\b`, 'g'), () => value)),
    ADVICE[reason as Reason],
  )
}
