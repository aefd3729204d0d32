import { baseConfig } from '@tollward/runtime'
import { z } from 'zod'

const MIB = 1024 * 1024

export const Config = z.strictObject({
  ...baseConfig,
  /** Findings as lines of JSON. Each replica needs a file of its own, in a directory that it may write. */
  findingsFile: z.string().min(1),
  /** When the file would grow beyond this it is put aside. By default some 40,000 findings. */
  findingsFileBytesMax: z.coerce
    .number<string>()
    .int()
    .min(1024)
    .default(64 * MIB),
  /** Files put aside that are kept; the oldest goes, and is counted. */
  findingsFilesKept: z.coerce.number<string>().int().min(0).max(1000).default(5),
})

export type Config = z.output<typeof Config>
