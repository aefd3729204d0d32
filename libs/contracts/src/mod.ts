export {
  ADDRESS_BYTES,
  type AddressRange,
  formatAddress,
  formatRange,
  parseAddress,
  parseRange,
  parseRangeKey,
  rangeContains,
  rangeKey,
} from './address.ts'
export {
  CALLER_BLOCKS_MAX,
  CALLER_ID_BYTES_MAX,
  type CallerKind,
  type CallerName,
  callerKey,
  formatCaller,
  isCallerName,
  parseCallerKey,
  readCaller,
  writeCaller,
} from './caller.ts'
export {
  type BroadcastContract,
  type BucketContract,
  broadcastContract,
  bucketContract,
  contract,
  type EventContract,
  methodSubject,
  responderName,
} from './contract.ts'
export { DEAD_LETTER_STREAM, DEAD_LETTER_SUBJECT, FINDING_STREAM, FINDING_SUBJECT } from './subjects.ts'
