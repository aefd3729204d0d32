import type { Bus, Entry, Following } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { type StoredDocument, StoredDocumentSchema } from '@tollward/contracts/document'
import {
  afterChange,
  afterSnapshot,
  type DetectorSettings,
  type DocumentSet,
  documentsOfKind,
} from '@tollward/documents'
import { toAppError } from '@tollward/errors'
import type { ServiceContext } from '@tollward/runtime'
import { DEFAULT_SETTINGS, type Settings, settingsOf } from '../domain/settings.ts'
import type { Metrics } from '../metrics.ts'

const KIND = 'DetectorSettings'

/** The name that goes before others when several documents were applied. */
const PREFERRED_NAME = 'default'

/**
 * Keeps the settings as operators apply them. A document that cannot be used is counted and logged, and what was in force
 * stays. Resolves when the documents that are there have been read.
 */
export function followSettings(
  bus: Bus,
  {
    log,
    metrics,
    apply,
  }: { log: ServiceContext<unknown>['log']; metrics: Metrics; apply: (settings: Settings) => void },
): Promise<Following> {
  let inForce: DocumentSet = new Map()
  const report = (fault: string) => {
    metrics.settingsFaults.inc()
    log.error({ fault }, 'DetectorSettings cannot be used; what was in force stays')
  }
  const use = (documents: DocumentSet) => {
    inForce = documents
    const [chosen, ...others] = byPreference(documents)
    if (others.length > 0) {
      log.warn(
        { inForce: chosen?.metadata.name, ignored: others.map(({ metadata }) => metadata.name) },
        'one DetectorSettings is enough',
      )
    }
    try {
      const settings = chosen === undefined ? DEFAULT_SETTINGS : settingsOf(chosen)
      apply(settings)
      log.info({ name: chosen?.metadata.name, flood: settings.flood, scan: settings.scan }, 'settings in force')
    } catch (error) {
      report(toAppError(error).message)
    }
  }
  return bus.bucket(bucketContract(StoredDocumentSchema)).follow({
    snapshot: (entries) => {
      const stored = [...entries.values()]
        .filter(({ key }) => isSettings(key))
        .map(({ key, value }) => [key, value] as const)
      const { inForce: documents, faults } = afterSnapshot(inForce, new Map(stored))
      faults.forEach(report)
      use(documents)
    },
    change: (key: string, entry: Entry<StoredDocument> | undefined) => {
      if (!isSettings(key)) return
      const { inForce: documents, fault } = afterChange(inForce, key, entry?.value)
      if (fault === undefined) use(documents)
      else report(fault)
    },
  })
}

function isSettings(key: string): boolean {
  return key.startsWith(`${KIND}.`)
}

function byPreference(documents: DocumentSet): DetectorSettings[] {
  const rank = ({ metadata }: DetectorSettings) => (metadata.name === PREFERRED_NAME ? '' : metadata.name)
  return [...documentsOfKind(documents, KIND).values()].sort((a, b) => (rank(a) < rank(b) ? -1 : 1))
}
