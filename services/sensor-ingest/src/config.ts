import { baseConfig, guardedAddresses } from '@tollward/runtime'
import { z } from 'zod'

export const Config = z.strictObject({
  ...baseConfig,
  /** Addresses of the nodes themselves, separated by commas. They, 127.0.0.1 and ::1 are never blocked. */
  guardedAddresses,
  /**
   * Blocks of detectors in force at once; beyond it they only alert. A detector gone wrong, or an attacker with many addresses
   * who wants honest ones of his kind locked out, stays within it.
   */
  machineBlocksMax: z.coerce.number<string>().int().min(0).max(1_000_000).default(1000),
})

export type Config = z.output<typeof Config>
