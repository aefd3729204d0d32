import { type Conflict, policyConflicts } from '@tollward/decision/policies'
import type { DocumentFault, DocumentSet, DocumentSource, Guarded, TollwardDocument } from '@tollward/documents'
import { DocumentError, documentsOfKind, kernelRuleFaults, roomFaults } from '@tollward/documents'
import { AppError } from '@tollward/errors'

/** What is written first: whoever follows the bucket never meets a policy before the plan that it names. */
const ORDER: Readonly<Record<TollwardDocument['kind'], number>> = {
  Plan: 0,
  Client: 1,
  DetectorSettings: 2,
  ApiPolicy: 3,
  RateLimit: 4,
  KernelRule: 5,
}

/**
 * Checks the documents of a text against each other and against those in force; returns them in the order in which they are
 * to be written. Throws DocumentError with every fault.
 */
export function orderedForApply(
  sources: readonly DocumentSource[],
  inForce: DocumentSet,
  operatorClientId: string,
  guarded: Guarded,
): DocumentSource[] {
  const plans = new Set(documentsOfKind(inForce, 'Plan').keys())
  for (const { document } of sources) if (document.kind === 'Plan') plans.add(document.metadata.name)
  const faults = sources.flatMap((source) => [
    ...planFaults(source, plans),
    ...clientFaults(source, operatorClientId),
    ...kernelRuleFaults(source, guarded),
  ])
  faults.push(...roomFaults(sources, inForce))
  if (faults.length > 0) throw new DocumentError(faults)
  return [...sources].sort((a, b) => ORDER[a.document.kind] - ORDER[b.document.kind])
}

/** Where the policies that will be in force once these documents are speak against each other. */
export function conflictsAfter(sources: readonly DocumentSource[], inForce: DocumentSet): Conflict[] {
  const policies = new Map(documentsOfKind(inForce, 'ApiPolicy'))
  for (const { document } of sources) {
    if (document.kind === 'ApiPolicy') policies.set(document.metadata.name, document)
  }
  return policyConflicts([...policies.values()])
}

/** AppError `failed_precondition` if a policy in force needs the document. */
export function refuseIfNeeded(kind: string, name: string, inForce: DocumentSet): void {
  if (kind !== 'Plan') return
  const users = [...documentsOfKind(inForce, 'ApiPolicy').values()]
    .filter(({ spec }) => spec.rules.some((rule) => rule.require?.payment?.plan === name))
    .map(({ metadata }) => `ApiPolicy/${metadata.name}`)
  if (users.length > 0) {
    throw new AppError('failed_precondition', `Plan/${name} is needed by ${users.join(', ')}; change that first.`)
  }
}

function planFaults({ document, fault }: DocumentSource, plans: ReadonlySet<string>): DocumentFault[] {
  if (document.kind !== 'ApiPolicy') return []
  return document.spec.rules.flatMap((rule, index) => {
    const plan = rule.require?.payment?.plan
    if (plan === undefined || plans.has(plan)) return []
    const path = ['spec', 'rules', index, 'require', 'payment', 'plan']
    return [fault(path, `there is no Plan ${plan}; apply it first, or in the same text`)]
  })
}

/** The operator's client is in no document: it would have two secrets. */
function clientFaults({ document, fault }: DocumentSource, operatorClientId: string): DocumentFault[] {
  if (document.kind !== 'Client' || document.metadata.name !== operatorClientId) return []
  return [fault(['metadata', 'name'], "is the operator's own client; choose another name")]
}
