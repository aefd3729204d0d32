import { baseConfig, port } from '@tollward/runtime'
import { z } from 'zod'

/** Configuration of token-introspector, from TOLLWARD_* variables. */
export const ConfigSchema = z.strictObject({
  ...baseConfig,
  listenHost: z.string().min(1).default('127.0.0.1'),
  listenPort: port.default(4010),
  /** The issuer identifier, as auth-issuer has it: the "iss" of what is told about its tokens. */
  issuerUrl: z.url({ protocol: /^https?$/ }).default('http://127.0.0.1:4000'),
})

export type Config = z.output<typeof ConfigSchema>
