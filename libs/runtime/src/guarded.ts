import { type AddressRange, parseRange } from '@tollward/contracts'
import { z } from 'zod'

/** What is guarded whatever is configured: each address, not its prefix. */
const ALWAYS_GUARDED = '127.0.0.1,::1'

/**
 * Addresses of the nodes themselves, separated by commas, as a configuration has them; 127.0.0.1 and ::1 are always among them.
 * No block touches them, and one that names only them is refused.
 */
export const guardedAddresses = z
  .string()
  .transform((text, context): AddressRange[] =>
    [...text.split(','), ...ALWAYS_GUARDED.split(',')].flatMap((part) => {
      const written = part.trim()
      if (written === '') return []
      const range = parseRange(written)
      if (range?.prefixLength === 128) return [range]
      context.addIssue({ code: 'custom', message: `"${written}" is no IP address` })
      return []
    }),
  )
  .prefault('')
