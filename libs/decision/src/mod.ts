export { openPossession, type Possession } from './adapters/proofs.ts'
export { followRevocations, type RevocationKind } from './adapters/revocations.ts'
export { decisionConfig } from './config.ts'
export { createDecider, type Decider, type DeciderConfig, type DeciderOptions } from './decider.ts'
export {
  type Admission,
  challenge,
  DECISION_HEADER,
  type Decision,
  type HeaderField,
  IDENTITY_HEADERS,
  type Metadata,
  type Rejection,
  type Rewritten,
} from './domain/answer.ts'
export { bindingOf } from './domain/cached-token.ts'
export { clientAddress, isTrusted } from './domain/client-address.ts'
export { type DescriptorLimit, matchDescriptor, type RateLimitIndex } from './domain/descriptors.ts'
export {
  HEADER_BYTES_MAX,
  HEADER_FIELDS_MAX,
  type HeaderList,
  OVERRIDE_HEADERS,
  readFields,
  TXID_HEADER,
} from './domain/fields.ts'
export type { RequestFacts } from './domain/judge.ts'
export { type Charge, type Limit, type Rate, RateTable } from './domain/rate.ts'
export { problemType, REASONS, type Reason } from './domain/reasons.ts'
export { type Remembered, RevocableCache } from './domain/revocable-cache.ts'
export { clientTag, tagsOf } from './domain/revocation-tags.ts'
export { STAGES, type Stage } from './domain/stages.ts'
export { canonicalUri } from './domain/target.ts'
export { ADMISSION_SAMPLE, FEED_STALE_AFTER_MS, INTROSPECTOR_STALE_AFTER_MS } from './edges.ts'
