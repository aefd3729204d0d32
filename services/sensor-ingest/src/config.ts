import { type AddressRange, parseRange } from '@tollward/contracts'
import { baseConfig } from '@tollward/runtime'
import { z } from 'zod'

/** What the design guards whatever is configured: each address, not its prefix. */
const ALWAYS_GUARDED = '127.0.0.1,::1'

const addresses = z.string().transform((text, context): AddressRange[] =>
  [...text.split(','), ...ALWAYS_GUARDED.split(',')].flatMap((part) => {
    const written = part.trim()
    if (written === '') return []
    const range = parseRange(written)
    if (range?.prefixLength === 128) return [range]
    context.addIssue({ code: 'custom', message: `"${written}" is no IP address` })
    return []
  }),
)

export const Config = z.strictObject({
  ...baseConfig,
  /** Addresses of the nodes themselves, separated by commas. They, 127.0.0.1 and ::1 are never blocked. */
  guardedAddresses: addresses.prefault(''),
  /**
   * Blocks of detectors in force at once; beyond it they only alert. A detector gone wrong, or an attacker with many addresses
   * who wants honest ones of his kind locked out, stays within it.
   */
  machineBlocksMax: z.coerce.number<string>().int().min(0).max(1_000_000).default(1000),
})

export type Config = z.output<typeof Config>
