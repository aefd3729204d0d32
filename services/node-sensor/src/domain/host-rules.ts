import { createHash } from 'node:crypto'
import { type AddressRange, parseRange, rangeKey } from '@tollward/contracts'
import {
  type BlockList,
  DocumentError,
  type DocumentFault,
  type DocumentSource,
  endOfDocument,
  type Guarded,
  type KernelRule,
  kernelRuleFaults,
  namesOnlyGuarded,
  parseHostRules,
  roomFaults,
} from '@tollward/documents'
import type { WantedBlock } from './block.ts'

/** Of a block without an end: further than any machine runs, and within what the kernel's clock can count. */
const NEVER_MS = Date.UTC(2150, 0, 1)

/** A rule of the file, as KernelRules takes it. */
interface HostRule {
  readonly name: string
  readonly spec: KernelRule['spec']
  readonly expiresAtMs: number | undefined
  readonly appliedAtMs: number
}

/** What a rules file says. */
export interface HostRules {
  readonly rules: ReadonlyMap<string, HostRule>
  readonly blocks: readonly WantedBlock[]
  /** Names of the lists, by the number that the kernel knows their blocks by. */
  readonly lists: ReadonlyMap<number, string>
  readonly sources: readonly DocumentSource<KernelRule | BlockList>[]
}

/**
 * Reads a rules file, which was changed last at `changedAtMs`: a rule's ttl counts from then. What has ended is left out. Throws
 * DocumentError with every fault.
 */
export function readHostRules(text: string, file: string, changedAtMs: number, nowMs: number): HostRules {
  const sources = parseHostRules(text, file)
  const faults = roomFaults(sources, new Map())
  if (faults.length > 0) throw new DocumentError(faults)
  const rules = new Map<string, HostRule>()
  const blocks = new Map<string, WantedBlock>()
  const lists = new Map<number, string>()
  for (const { document } of sources) {
    const { name } = document.metadata
    if (document.kind === 'KernelRule') {
      const expiresAtMs = endOfDocument(document, changedAtMs)
      if (expiresAtMs === undefined || expiresAtMs > nowMs)
        rules.set(name, { name, spec: document.spec, expiresAtMs, appliedAtMs: 0 })
      continue
    }
    const { sources: written, until } = document.spec
    const id = numberOf(name)
    lists.set(id, name)
    const expiresAtMs = until === undefined ? NEVER_MS : Date.parse(until)
    if (expiresAtMs <= nowMs) continue
    for (const text of written) {
      const range = parseRange(text)
      if (!range) throw new TypeError(`${text} is not what its schema says`)
      const key = rangeKey(range)
      // Of two lists with the same range, the one that lasts longer.
      if (expiresAtMs > (blocks.get(key)?.expiresAtMs ?? 0))
        blocks.set(key, { key, range, expiresAtMs, decidedAtMs: 0, revision: id })
    }
  }
  return { rules, blocks: [...blocks.values()], lists, sources }
}

/** What of these documents would do nothing on this host, because it names only what is guarded. */
export function guardedFaults(sources: HostRules['sources'], guarded: Guarded): DocumentFault[] {
  return sources.flatMap((source) => {
    const { document, fault } = source
    if (document.kind !== 'BlockList') return kernelRuleFaults(source, guarded)
    return document.spec.sources.flatMap((text, index) => {
      const range: AddressRange | undefined = parseRange(text)
      const why = 'is guarded: 127.0.0.1, ::1, the addresses of this host and the configured ones are never blocked'
      return range && namesOnlyGuarded(range, guarded.addresses)
        ? [fault(['spec', 'sources', index], `${text} ${why}`)]
        : []
    })
  })
}

/** The same for a name whatever else the file says, so that a list keeps its blocks as they are when another comes before it. */
function numberOf(name: string): number {
  return createHash('sha256').update(name).digest().readUInt32LE()
}
