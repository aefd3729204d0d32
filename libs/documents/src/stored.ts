import type { Kind, TollwardDocument } from './kinds.ts'
import { DocumentError, parseDocuments } from './parse.ts'

/** The format of StoredDocument that this library reads and writes. */
export const STORED_FORMAT = 1

/** What the bucket `documents` holds, as far as reading it goes. */
export interface StoredText {
  readonly format: number
  readonly kind: string
  readonly name: string
  readonly yaml: string
}

/** A stored document as it is read back, or one sentence on why it cannot be. */
export type StoredReading = { readonly document: TollwardDocument } | { readonly fault: string }

/** Documents by their key in the bucket. */
export type DocumentSet = ReadonlyMap<string, TollwardDocument>

/** Reads a stored document: admin-api checked it when it was applied, perhaps in another version. */
export function readStored({ format, kind, name, yaml }: StoredText): StoredReading {
  const title = `${kind}/${name}`
  if (format !== STORED_FORMAT)
    return { fault: `${title} is stored in format ${format}; this version reads ${STORED_FORMAT}` }
  try {
    const [document, ...others] = parseDocuments(yaml, title)
    if (!document || others.length > 0) return { fault: `${title} is stored with more than one document` }
    if (document.kind !== kind || document.metadata.name !== name) {
      return { fault: `${title} is stored with the text of ${document.kind}/${document.metadata.name}` }
    }
    return { document }
  } catch (error) {
    if (error instanceof DocumentError) return { fault: error.message }
    throw error
  }
}

/**
 * What is in force after one key changed; `stored` undefined: it was deleted. A stored document that cannot be read is
 * reported as a fault and leaves the one that was in force.
 */
export function afterChange(
  inForce: DocumentSet,
  key: string,
  stored: StoredText | undefined,
): { inForce: DocumentSet; fault?: string } {
  const next = new Map(inForce)
  if (stored === undefined) {
    next.delete(key)
    return { inForce: next }
  }
  const reading = readStored(stored)
  if ('fault' in reading) return { inForce, fault: reading.fault }
  next.set(key, reading.document)
  return { inForce: next }
}

/** What is in force after the complete state arrived: as afterChange for each key, and keys that are gone are deleted. */
export function afterSnapshot(
  inForce: DocumentSet,
  stored: ReadonlyMap<string, StoredText>,
): { inForce: DocumentSet; faults: string[] } {
  const next = new Map<string, TollwardDocument>()
  const faults: string[] = []
  for (const [key, value] of stored) {
    const reading = readStored(value)
    if ('fault' in reading) faults.push(reading.fault)
    const document = 'fault' in reading ? inForce.get(key) : reading.document
    if (document) next.set(key, document)
  }
  return { inForce: next, faults }
}

/** The documents of one kind, by name. */
export function documentsOfKind<K extends Kind>(
  inForce: DocumentSet,
  kind: K,
): Map<string, Extract<TollwardDocument, { kind: K }>> {
  const found = new Map<string, Extract<TollwardDocument, { kind: K }>>()
  for (const document of inForce.values()) {
    if (isOfKind(document, kind)) found.set(document.metadata.name, document)
  }
  return found
}

function isOfKind<K extends Kind>(
  document: TollwardDocument,
  kind: K,
): document is Extract<TollwardDocument, { kind: K }> {
  return document.kind === kind
}
