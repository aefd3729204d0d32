export {
  type AttachMode,
  type Attachment,
  attachEgress,
  attachTracepoint,
  attachXdp,
  interfaceIndex,
  type LinkOptions,
  type RemovedPins,
  removePins,
  xdpMode,
} from './attach.ts'
export { type BlockMap, type BlockMaps, blockMaps } from './block-maps.ts'
export { hasKernelTracepoint } from './btf.ts'
export {
  CALL_COUNTER,
  type CallBinding,
  type CallConfig,
  type CallCounterName,
  type CallDirection,
  type CallSource,
  type Chunk,
  type ChunkAddresses,
  decodeChunk,
  encodeCallConfig,
  encodeClearPorts,
  PAYLOAD_BYTES_MAX,
} from './call-layout.ts'
export { CgroupPaths } from './cgroup.ts'
export { bootNsToWallTimeMs, bootTimeNs, wallTimeToBootNs } from './clock.ts'
export { ElfFile, type ElfFunction } from './elf.ts'
export { ExactBlocks, tableSizes } from './exact-blocks.ts'
export { drainKernelDrops, FlowDrain, Generations } from './flow-drain.ts'
export {
  CGROUP_OF_MEMORY_HIERARCHY,
  CONNECTION,
  type ConnectionOwner,
  decodeFlow,
  decodeOwner,
  decodeSpilledFlow,
  FLOW,
  FLOW_FLAG,
  FLOW_KEY,
  type FlowRecord,
  type KernelDropRecord,
  SPILLED_FLOW,
} from './flow-layout.ts'
export { goProbes, type Unsupported } from './go-probes.ts'
export { guardAddresses } from './guarded.ts'
export { countRuns, mapBytes, type ProgramStats, programStats } from './info.ts'
export { iterate } from './iterate.ts'
export { dropReasons } from './kernel-types.ts'
export {
  ANOMALY,
  type Anomaly,
  type Block,
  type BlockMode,
  type BlockTarget,
  blockTarget,
  COUNTER,
  type CounterName,
  type Direction,
  decodeBlock,
  decodeBlockHead,
  decodeFirstHit,
  decodeGuardEvent,
  decodeRuleCount,
  encodeBlock,
  encodeConfig,
  type FirstHit,
  type GuardConfig,
  type GuardEvent,
  type GuardMode,
  HITS_TOLD,
  isBlockOf,
  LAYOUT_VERSION,
  MANAGEMENT_PORTS_MAX,
  type Rate,
  RULE_IDS,
  type RuleAction,
  type RuleCount,
  type RuleMode,
} from './layout.ts'
export {
  detachLinkById,
  type HookLink,
  heldLinks,
  pinLinkById,
  pinnedLinks,
  sensorLinks,
} from './links.ts'
export { sendLiveFrames } from './live-frames.ts'
export { type Batch, type BpfMap, hasBatches, openMap, openPinnedMap } from './map.ts'
export { type CodeMapping, codeMappings, MappingWatch, scanMappings, withMapping } from './mappings.ts'
export { hasSameLayout, type Migration, migrateBlocks, migrateEntries } from './migrate.ts'
export { migrateExact } from './migrate-exact.ts'
export { BpfError, isErrno } from './native.ts'
export {
  type BpfObject,
  type BpfProgram,
  isPinMismatch,
  type LoadOptions,
  loadObject,
  type MapOptions,
  type ObjectContents,
  objectContents,
  refusedProgram,
  type TestRun,
  testRun,
} from './object.ts'
export { pidNamespaceInum } from './pid-namespace.ts'
export { type OnRecord, RingReader } from './ring.ts'
export {
  compileRuleTable,
  type LeftOutRule,
  type Prefix,
  type RuleMaps,
  type RuleTable,
  RuleTables,
  type RuleTerms,
} from './rule-table.ts'
export { compile, hasKernelTypes, isBpffs, mountBpffs, probeSupport, type Support, unmountBpffs } from './support.ts'
export { type TlsProbes, tlsProbes } from './tls-probes.ts'
export {
  attachUprobes,
  BPF_TRACE_UPROBE_MULTI,
  hasSafeReturnProbes,
  hasUprobeMulti,
  type Uprobe,
  type UprobeAttachment,
} from './uprobe.ts'
