export { type ApiPolicy, ApiPolicySchema, limitsOf } from './api-policy.ts'
export { BLOCK_LIST_KIND, type BlockList } from './block-list.ts'
export type { PolicyExample, PolicyExamples } from './examples.ts'
export { KERNEL_RULES_MAX, type KernelRule, KernelRuleSchema, portsBetween } from './kernel-rule.ts'
export { endOfDocument, type Guarded, kernelRuleFaults, roomFaults } from './kernel-rule-faults.ts'
export {
  type Client,
  ClientSchema,
  type DetectorSettings,
  DetectorSettingsSchema,
  DUST_SATS,
  KINDS,
  type Kind,
  type Plan,
  PlanSchema,
  RESERVED_SCOPE_PREFIX,
  type TollwardDocument,
} from './kinds.ts'
export {
  DOCUMENT_BYTES_MAX,
  DocumentError,
  type DocumentFault,
  type DocumentSource,
  documentKey,
  formatFault,
  isKind,
  parseDocuments,
  parseExamples,
  parseHostRules,
  parseSources,
  TEXT_BYTES_MAX,
} from './parse.ts'
export { API_VERSION, duration, durationMs } from './parts.ts'
export { namesOnlyGuarded, whyTooWide } from './ranges.ts'
export { type RateLimit, RateLimitSchema } from './rate-limit.ts'
export {
  afterChange,
  afterSnapshot,
  type DocumentSet,
  documentsOfKind,
  readStored,
  STORED_FORMAT,
  type StoredReading,
  type StoredText,
} from './stored.ts'
