import type { Bus, Following } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { afterChange, afterSnapshot, type DocumentSet, documentsOfKind, type Plan } from '@tollward/documents'
import type { Logger } from 'pino'
import type { Metrics } from '../metrics.ts'

/** The Plan documents in force. One that cannot be read leaves in force what was. */
export interface Plans extends AsyncDisposable {
  get(name: string): Plan | undefined
  all(): Plan[]
}

/** Begins to watch the documents; resolves when all are known. */
export async function followPlans(bus: Bus, metrics: Metrics, log: Logger): Promise<Plans> {
  let documents: DocumentSet = new Map()
  let plans = documentsOfKind(documents, 'Plan')
  const take = (inForce: DocumentSet, faults: readonly string[]) => {
    documents = inForce
    plans = documentsOfKind(documents, 'Plan')
    for (const fault of faults) {
      metrics.documentFaults.inc()
      log.error({ fault }, 'document cannot be read; what was in force stays')
    }
  }
  const following: Following = await bus.bucket(bucketContract(StoredDocumentSchema)).follow({
    snapshot: (entries) => {
      const stored = new Map([...entries].map(([key, { value }]) => [key, value]))
      const { inForce, faults } = afterSnapshot(documents, stored)
      take(inForce, faults)
    },
    change: (key, entry) => {
      const { inForce, fault } = afterChange(documents, key, entry?.value)
      take(inForce, fault === undefined ? [] : [fault])
    },
  })
  return {
    get: (name) => plans.get(name),
    all: () => [...plans.values()].toSorted((one, other) => (one.metadata.name < other.metadata.name ? -1 : 1)),
    [Symbol.asyncDispose]: () => following[Symbol.asyncDispose](),
  }
}
