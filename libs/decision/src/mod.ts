export { decisionConfig } from './config.ts'
export { createDecider, type Decider, type DeciderConfig, type DeciderOptions } from './decider.ts'
export {
  type Admission,
  DECISION_HEADER,
  type Decision,
  type HeaderField,
  IDENTITY_HEADERS,
  type Rejection,
} from './domain/answer.ts'
export { clientAddress, isTrusted } from './domain/client-address.ts'
export { HEADER_BYTES_MAX, HEADER_FIELDS_MAX, type HeaderList, TXID_HEADER } from './domain/fields.ts'
export type { RequestFacts } from './domain/judge.ts'
export { problemType, REASONS, type Reason } from './domain/reasons.ts'
