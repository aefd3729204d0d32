import { Counter, Gauge, type Registry } from 'prom-client'

/** Error codes of RFC 6749, RFC 7009, RFC 8707 and our own; any other is counted as `other`. */
const OAUTH_ERRORS = new Set([
  'invalid_request',
  'invalid_client',
  'invalid_client_metadata',
  'invalid_redirect_uri',
  'invalid_token',
  'invalid_grant',
  'invalid_scope',
  'invalid_target',
  'unauthorized_client',
  'unsupported_grant_type',
  'unsupported_token_type',
  'temporarily_unavailable',
  'server_error',
  'slow_down',
  'too_large',
])

/** Metrics of auth-issuer. */
export function issuerMetrics(registry: Registry) {
  const registers = [registry]
  return {
    issued: new Counter({
      name: 'tollward_auth_issuer_tokens_issued_total',
      help: 'Access tokens handed out.',
      registers,
    }),
    refused: new Counter({
      name: 'tollward_auth_issuer_refusals_total',
      help: 'OAuth requests refused, by error code.',
      labelNames: ['error'],
      registers,
    }),
    exchanges: new Counter({
      name: 'tollward_auth_issuer_exchanges_total',
      help: 'Tokens looked up for an internal token, by what they were worth.',
      labelNames: ['result'],
      registers,
    }),
    exchanged: new Counter({
      name: 'tollward_auth_issuer_tokens_exchanged_total',
      help: 'Internal tokens handed out by token exchange.',
      registers,
    }),
    revocations: new Counter({
      name: 'tollward_auth_issuer_revocations_total',
      help: 'Revocations whose event the bus acknowledged.',
      labelNames: ['of'],
      registers,
    }),
    revocationsFinished: new Counter({
      name: 'tollward_auth_issuer_revocations_finished_late_total',
      help: 'Revocations whose event had not been acknowledged and was published at the next look at the token.',
      registers,
    }),
    keyChanges: new Counter({
      name: 'tollward_auth_issuer_key_changes_total',
      help: 'Changes of the ring of signing keys that this replica announced.',
      labelNames: ['change'],
      registers,
    }),
    signingSince: new Gauge({
      name: 'tollward_auth_issuer_signing_key_since_seconds',
      help: 'Since when the key that signs now has been the one that does, seconds since the epoch.',
      labelNames: ['algorithm'],
      registers,
    }),
    selfRegistered: new Gauge({
      name: 'tollward_auth_issuer_self_registered_clients',
      help: 'Clients that have registered themselves without leave, and have not lapsed.',
      registers,
    }),
    registrations: new Counter({
      name: 'tollward_auth_issuer_registrations_total',
      help: 'Registrations of clients and requests to manage them, by what came of them.',
      labelNames: ['request', 'result'],
      registers,
    }),
    signIns: new Counter({
      name: 'tollward_auth_issuer_sign_ins_total',
      help: 'People who tried to sign in, by what came of it.',
      labelNames: ['result'],
      registers,
    }),
    passwordHashes: new Counter({
      name: 'tollward_auth_issuer_password_hashes_total',
      help: 'Passwords hashed, for names that are nobody’s too.',
      registers,
    }),
    consents: new Counter({
      name: 'tollward_auth_issuer_consents_total',
      help: 'People who were asked whether a client may act for them, by their decision.',
      labelNames: ['decision'],
      registers,
    }),
    sourcesForgotten: new Counter({
      name: 'tollward_auth_issuer_sources_forgotten_total',
      help: 'Sources that began something, forgotten for want of room; they may begin as many things anew.',
      registers,
    }),
    formsRefused: new Counter({
      name: 'tollward_auth_issuer_forms_refused_total',
      help: 'Forms not taken because they came from another site or from no page of ours that is still good.',
      labelNames: ['reason'],
      registers,
    }),
    authentications: new Counter({
      name: 'tollward_auth_issuer_authentications_total',
      help: 'Secrets checked for other services.',
      labelNames: ['result'],
      registers,
    }),
  }
}

export type IssuerMetrics = ReturnType<typeof issuerMetrics>

/** The label of an OAuth error code. */
export function errorLabel(error: string): string {
  return OAUTH_ERRORS.has(error) ? error : 'other'
}
