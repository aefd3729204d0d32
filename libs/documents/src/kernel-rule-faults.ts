import { type AddressRange, parseRange } from '@tollward/contracts'
import type { BlockList } from './block-list.ts'
import { KERNEL_RULES_MAX, portsBetween } from './kernel-rule.ts'
import type { TollwardDocument } from './kinds.ts'
import type { DocumentFault, DocumentSource } from './parse.ts'
import { durationMs } from './parts.ts'
import { namesOnlyGuarded } from './ranges.ts'
import { type DocumentSet, documentsOfKind } from './stored.ts'

/** What no rule touches: every node lets these packets through before it looks at any rule. */
export interface Guarded {
  readonly addresses: readonly AddressRange[]
  /** Of TCP and UDP: on the nodes, and of whom they reach there, such as the bus. */
  readonly managementPorts: readonly number[]
}

/** What of a rule would do nothing on any node, because it names only what is guarded. */
export function kernelRuleFaults(
  { document, fault }: DocumentSource<TollwardDocument | BlockList>,
  guarded: Guarded,
): DocumentFault[] {
  // What passes anyway may be allowed.
  if (document.kind !== 'KernelRule' || document.spec.action === 'allow') return []
  const { direction, ports = [] } = document.spec
  const peers = direction === 'ingress' ? 'sources' : 'destinations'
  const addresses = 'is guarded: 127.0.0.1, ::1 and the nodes themselves are touched by no rule'
  const management = `is a management port (${guarded.managementPorts.join(', ')}), which no rule touches`
  return [
    ...(document.spec[peers] ?? []).flatMap((written, index) => {
      const range = parseRange(written)
      const isGuarded = range !== undefined && namesOnlyGuarded(range, guarded.addresses)
      return isGuarded ? [fault(['spec', peers, index], `${written} ${addresses}`)] : []
    }),
    ...ports.flatMap((written, index) =>
      isOnlyManagement(written, guarded.managementPorts)
        ? [fault(['spec', 'ports', index], `${written} ${management}`)]
        : [],
    ),
  ]
}

/** Rules for which no node would have room once these documents are in force. */
export function roomFaults(
  sources: readonly DocumentSource<TollwardDocument | BlockList>[],
  inForce: DocumentSet,
): DocumentFault[] {
  const rules = documentsOfKind(inForce, 'KernelRule')
  for (const { document } of sources) if (document.kind === 'KernelRule') rules.delete(document.metadata.name)
  const taken = { ingress: 0, egress: 0 }
  for (const { spec } of rules.values()) taken[spec.direction] += 1
  return sources.flatMap(({ document, fault }) => {
    if (document.kind !== 'KernelRule') return []
    const { direction } = document.spec
    taken[direction] += 1
    if (taken[direction] <= KERNEL_RULES_MAX) return []
    const reason = `is rule ${taken[direction]} of ${direction}, and nodes have room for ${KERNEL_RULES_MAX}; delete some`
    return [fault(['metadata', 'name'], reason)]
  })
}

/** When a document that is applied now ends by itself; undefined: never. */
export function endOfDocument(document: TollwardDocument | BlockList, nowMs: number): number | undefined {
  if (document.kind !== 'KernelRule' || document.spec.ttl === undefined) return undefined
  return nowMs + durationMs(document.spec.ttl)
}

function isOnlyManagement(written: number | string, managementPorts: readonly number[]): boolean {
  const [first, last] = portsBetween(written) ?? [0, 0]
  const inside = managementPorts.filter((port) => port >= first && port <= last)
  return new Set(inside).size === last - first + 1
}
