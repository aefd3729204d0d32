export { type AccountAddress, type AccountKey, ADDRESS_INDEX_MAX, parseAccountKey } from './account-key.ts'
export { AMOUNT_SATS_MAX, formatBtc, parseBtc } from './amount.ts'
export {
  type ChainChange,
  ChainFollower,
  type ChainFollowerOptions,
  type ChainHandlers,
  type ConnectedBlock,
} from './chain-follower.ts'
export type {
  BestBlock,
  BlockHeader,
  BlockPlace,
  BlockStanding,
  ChainHeader,
  ChainSource,
  Findings,
  NoticeHandlers,
  Spending,
  UnconfirmedIds,
  Watched,
  WatchedScripts,
} from './chain-source.ts'
export { LightSource, type LightSourceOptions } from './light/light-source.ts'
export type { VanishedTransaction } from './mempool-watch.ts'
export { NETWORK_NAMES, type Network } from './network.ts'
export { type CallOptions, type NodeCall, type NodeClient, type NodeOptions, nodeClient } from './node-client.ts'
export { NodeSource, type NodeSourceOptions } from './node-source.ts'
export { formatPaymentUri, outputScript, type PaymentRequest, parsePaymentUri } from './payment-uri.ts'
export { ScriptMap } from './script-map.ts'
export { type OnSourceState, SeveralSources, SOURCE_STATES, type SourceState } from './several-sources.ts'
export { findInBlock, hashBytes, type IsWatched, showHash, type WatchedOutput } from './watched-outputs.ts'
