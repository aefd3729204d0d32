import { baseConfig, port } from '@tollward/runtime'
import { z } from 'zod'

/** Configuration of token-introspector, from TOLLWARD_* variables. */
export const ConfigSchema = z.strictObject({
  ...baseConfig,
  listenHost: z.string().min(1).default('127.0.0.1'),
  listenPort: port.default(4010),
})

export type Config = z.output<typeof ConfigSchema>
