export type {
  Bucket,
  BucketBuilder,
  BucketChange,
  BucketObserver,
  Codec,
  Entry,
  SnapshotDraft,
  WriteOptions,
} from './bucket.ts'
export {
  type Bus,
  type BusOptions,
  connectBus,
  type FollowOptions,
  type HistoryOptions,
  type Since,
  type StoredLetter,
} from './bus.ts'
export { type ConsumeOptions, type Delivery, type Outcome, REDELIVERY_DELAYS_MS } from './consume.ts'
export type { Following } from './feed.ts'
export { durableSubjects, inboxPrefix, type Permissions, permissionsOf } from './permissions.ts'
export { ACK_WAIT_MS, isProvisioned, provision } from './provision.ts'
export type { Published, PublishOptions } from './publish.ts'
export type { CallContext, Client, Implementation } from './rpc.ts'
export { ACCESS, type Access, BUCKETS, DURABLES, STREAMS } from './topology.ts'
