import { parseRange } from '@tollward/contracts'
import { z } from 'zod'
import { cidr, document } from './parts.ts'
import { whyTooWide } from './ranges.ts'

/** What the rules file of one host blocks. It is never applied: a cluster's blocks are in the bucket `blocks`, each with an end. */
export const BLOCK_LIST_KIND = 'BlockList'

/** As many as the longest document holds. */
const SOURCES_MAX = 30_000

const source = cidr.superRefine((text, context) => {
  const range = parseRange(text)
  const why = range && whyTooWide(range)
  if (why !== undefined) context.addIssue({ code: 'custom', message: `${why}; block parts of it` })
})

export const BlockListSchema = document(
  BLOCK_LIST_KIND,
  z.strictObject({
    /** Addresses and CIDRs whose packets are dropped when they arrive. */
    sources: z.array(source).min(1).max(SOURCES_MAX),
    /** Absent: as long as the file names them. */
    until: z.iso
      .datetime({ offset: true, error: 'must be a time with its zone, such as 2027-01-31T18:00:00Z' })
      .optional(),
  }),
)

export type BlockList = z.infer<typeof BlockListSchema>
