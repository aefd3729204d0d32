import { DEAD_LETTER_STREAM, DEAD_LETTER_SUBJECT, FINDING_STREAM, FINDING_SUBJECT } from '@tollward/contracts'

/*
 * What stands on the bus, and who may touch it: streams, durable consumers, buckets, and for each service its part. The
 * provisioner makes the first three, the permissions of each credential follow from the last; nothing else says any of it.
 */

const MINUTE_MS = 60_000
const DAY_MS = 24 * 60 * MINUTE_MS
const MIB = 1024 * 1024
const GIB = 1024 * MIB

export interface StreamTopology {
  readonly subjects: readonly string[]
  readonly storage: 'file' | 'memory'
  /** 0: for ever. */
  readonly maxAgeMs: number
  readonly maxBytes: number
  /** When full: the oldest go, or publishers are refused. */
  readonly whenFull: 'oldest-go' | 'refuse'
  /** Kept until the one consumer acknowledged, instead of by age. */
  readonly workQueue?: true
}

export const STREAMS: Readonly<Record<string, StreamTopology>> = {
  OBSERVED: {
    subjects: ['tollward.sensor.v1.>'],
    storage: 'memory',
    maxAgeMs: 10 * MINUTE_MS,
    maxBytes: 512 * MIB,
    whenFull: 'oldest-go',
  },
  EVENTS: {
    subjects: ['tollward.token.v1.>', 'tollward.payment.v1.>', 'tollward.enforcement.v1.>', 'tollward.admin.v1.>'],
    storage: 'file',
    maxAgeMs: 30 * DAY_MS,
    maxBytes: 2 * GIB,
    whenFull: 'oldest-go',
  },
  LEDGER: {
    subjects: ['tollward.ledger.v1.>'],
    storage: 'file',
    maxAgeMs: 0,
    maxBytes: GIB,
    whenFull: 'refuse',
  },
  ALERTS: {
    subjects: ['tollward.detection.v1.>'],
    storage: 'file',
    maxAgeMs: 0,
    maxBytes: 2 * GIB,
    whenFull: 'refuse',
    workQueue: true,
  },
  [FINDING_STREAM]: {
    subjects: [`${FINDING_SUBJECT}.*`],
    storage: 'file',
    maxAgeMs: 30 * DAY_MS,
    maxBytes: 4 * GIB,
    whenFull: 'oldest-go',
  },
  [DEAD_LETTER_STREAM]: {
    subjects: [`${DEAD_LETTER_SUBJECT}.*`],
    storage: 'file',
    maxAgeMs: 30 * DAY_MS,
    maxBytes: GIB,
    whenFull: 'oldest-go',
  },
}

export interface DurableTopology {
  readonly stream: string
  readonly filter: string
}

/** Durable consumers: each message goes to one replica of the service that reads it. */
export const DURABLES: Readonly<Record<string, DurableTopology>> = {
  'sensor-ingest-flows': { stream: 'OBSERVED', filter: 'tollward.sensor.v1.flow.observed.>' },
  'block-audit': { stream: 'KV_blocks', filter: '$KV.blocks.>' },
  'ledger-announcer': { stream: 'LEDGER', filter: 'tollward.ledger.v1.>' },
  'pass-announcer': { stream: 'KV_passes', filter: '$KV.passes.>' },
  'issuer-passes': { stream: 'EVENTS', filter: 'tollward.payment.v1.pass.activated' },
  'conduct-calls': { stream: 'OBSERVED', filter: 'tollward.sensor.v1.call.observed.>' },
  'conduct-findings': { stream: FINDING_STREAM, filter: `${FINDING_SUBJECT}.*` },
  'conduct-logins': { stream: 'EVENTS', filter: 'tollward.token.v1.login.failed' },
  'conduct-reuses': { stream: 'EVENTS', filter: 'tollward.token.v1.refresh.reused' },
  'alert-router': { stream: 'ALERTS', filter: 'tollward.detection.v1.>' },
  'siem-default': { stream: FINDING_STREAM, filter: `${FINDING_SUBJECT}.*` },
}

export interface BucketTopology {
  readonly maxBytes: number
}

/** Buckets hold the last value of each key; a value that has an end is removed by the server when it comes. */
export const BUCKETS: Readonly<Record<string, BucketTopology>> = {
  documents: { maxBytes: 64 * MIB },
  blocks: { maxBytes: 512 * MIB },
  passes: { maxBytes: 512 * MIB },
  conduct: { maxBytes: 256 * MIB },
  sensors: { maxBytes: 16 * MIB },
  'oidc-ClientSecret': { maxBytes: 16 * MIB },
  'oidc-Client': { maxBytes: 64 * MIB },
  'oidc-ClientCredentials': { maxBytes: 512 * MIB },
  'oidc-AccessToken': { maxBytes: 256 * MIB },
  'oidc-RefreshToken': { maxBytes: 256 * MIB },
  'oidc-Grant': { maxBytes: 128 * MIB },
  'oidc-Session': { maxBytes: 128 * MIB },
  'oidc-AuthorizationCode': { maxBytes: 64 * MIB },
  'oidc-DeviceCode': { maxBytes: 64 * MIB },
  'oidc-Interaction': { maxBytes: 64 * MIB },
  'oidc-PushedAuthorizationRequest': { maxBytes: 64 * MIB },
  'oidc-InitialAccessToken': { maxBytes: 16 * MIB },
  'oidc-ReplayDetection': { maxBytes: 128 * MIB },
  'oidc-Account': { maxBytes: 64 * MIB },
  'oidc-AccountName': { maxBytes: 16 * MIB },
  'oidc-SigningKey': { maxBytes: MIB },
  'oidc-Attempts': { maxBytes: 64 * MIB },
}

const ISSUER_BUCKETS = Object.keys(BUCKETS).filter((name) => name.startsWith('oidc-'))

export interface Access {
  /** Subjects of events, with the key's wildcard where one is appended. */
  readonly publishes?: readonly string[]
  /** Durable consumers. */
  readonly consumes?: readonly string[]
  /** Streams and the subjects in them that every replica reads from some point on. */
  readonly follows?: readonly { readonly stream: string; readonly filter: string }[]
  /** Subjects heard live only. */
  readonly listens?: readonly string[]
  readonly readsBuckets?: readonly string[]
  readonly writesBuckets?: readonly string[]
  /** Methods of responders, such as auth-issuer.exchange; a responder's name alone is all of its methods. */
  readonly calls?: readonly string[]
  /** Responders whose methods it answers. */
  readonly serves?: readonly string[]
  /** Streams of which it looks up messages by their sequence. */
  readonly looksUp?: readonly string[]
}

const TOKEN_EVENTS = { stream: 'EVENTS', filter: 'tollward.token.v1.>' }

/** What decision points tell each other, and nobody else hears. */
const RATE_USED = 'tollward.decision.v1.rate.used'

const DECISION_POINT = {
  listens: [RATE_USED],
  follows: [TOKEN_EVENTS],
  readsBuckets: ['documents', 'blocks', 'passes'],
  calls: [
    'token-introspector.introspect',
    'payment-verifier.redeem',
    'payment-verifier.lease',
    'payment-verifier.record',
    'payment-verifier.quote',
  ],
} satisfies Access

/** What each service may do on the bus, and nothing else. Its credential has the service's name. */
export const ACCESS: Readonly<Record<string, Access>> = {
  'auth-issuer': {
    publishes: ['tollward.token.v1.>'],
    consumes: ['issuer-passes'],
    readsBuckets: ['documents', ...ISSUER_BUCKETS],
    writesBuckets: ISSUER_BUCKETS,
    serves: ['auth-issuer'],
  },
  'token-introspector': {
    follows: [TOKEN_EVENTS],
    calls: ['auth-issuer.exchange', 'auth-issuer.authenticate_client', 'auth-issuer.sign_introspection'],
    serves: ['token-introspector'],
  },
  'payment-verifier': {
    publishes: ['tollward.payment.v1.>', 'tollward.ledger.v1.>'],
    consumes: [
      'ledger-announcer',
      'pass-announcer',
      'conduct-calls',
      'conduct-findings',
      'conduct-logins',
      'conduct-reuses',
    ],
    follows: [{ stream: 'LEDGER', filter: 'tollward.ledger.v1.>' }],
    readsBuckets: ['documents', 'passes', 'conduct'],
    writesBuckets: ['passes', 'conduct'],
    calls: ['token-introspector.introspect'],
    looksUp: ['LEDGER'],
    serves: ['payment-verifier', 'payment-treasury', 'payment-conduct'],
  },
  authorizer: { ...DECISION_POINT, publishes: ['tollward.sensor.v1.call.observed.authorizer', RATE_USED] },
  gateway: { ...DECISION_POINT, publishes: ['tollward.sensor.v1.call.observed.gateway', RATE_USED] },
  'node-sensor': {
    publishes: [
      'tollward.sensor.v1.flow.observed.*',
      'tollward.sensor.v1.call.captured.*',
      'tollward.detection.v1.alert.raised',
    ],
    readsBuckets: ['blocks', 'documents'],
    writesBuckets: ['sensors'],
  },
  'sensor-ingest': {
    publishes: ['tollward.detection.v1.alert.raised', 'tollward.enforcement.v1.>'],
    consumes: ['sensor-ingest-flows', 'block-audit'],
    follows: [
      { stream: 'EVENTS', filter: 'tollward.enforcement.v1.block.decided' },
      { stream: 'EVENTS', filter: 'tollward.enforcement.v1.block.lifted' },
    ],
    readsBuckets: ['documents', 'blocks'],
    writesBuckets: ['blocks'],
  },
  'alert-router': { publishes: [`${FINDING_SUBJECT}.*`], consumes: ['alert-router'] },
  'admin-api': {
    publishes: ['tollward.admin.v1.action.performed'],
    follows: [
      { stream: FINDING_STREAM, filter: `${FINDING_SUBJECT}.*` },
      { stream: 'OBSERVED', filter: 'tollward.sensor.v1.call.observed.*' },
      { stream: 'OBSERVED', filter: 'tollward.sensor.v1.call.captured.*' },
    ],
    listens: ['tollward.sensor.v1.flow.observed.*'],
    readsBuckets: ['documents', 'blocks', 'passes', 'sensors'],
    writesBuckets: ['documents', 'blocks'],
    calls: ['auth-issuer', 'token-introspector', 'payment-verifier', 'payment-treasury', 'payment-conduct'],
  },
}
