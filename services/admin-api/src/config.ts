import { baseConfig, guardedAddresses, port } from '@tollward/runtime'
import { z } from 'zod'

const ServicesSchema = z.array(
  z.union(
    [
      z.strictObject({ name: z.string().min(1), readyUrl: z.url({ protocol: /^https?$/ }) }),
      z.strictObject({ name: z.string().min(1), off: z.string().min(1) }),
    ],
    { error: 'each entry is {"name", "readyUrl"} or {"name", "off": reason}' },
  ),
)

const services = z.string().transform((text, context) => {
  try {
    const result = ServicesSchema.safeParse(JSON.parse(text))
    if (result.success) return result.data
    for (const { message } of result.error.issues) context.addIssue({ code: 'custom', message })
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error
    context.addIssue({ code: 'custom', message: 'is not JSON' })
  }
  return z.NEVER
})

const managementPorts = z.string().transform((text, context) =>
  text
    .split(',')
    .map((part) => part.trim())
    .filter((part) => part !== '')
    .map((part) => {
      const number = /^\d{1,5}$/.test(part) ? Number(part) : 0
      if (number < 1 || number > 65_535) context.addIssue({ code: 'custom', message: `"${part}" is no port` })
      return number
    }),
)

/** Configuration of admin-api, from TOLLWARD_* variables. */
export const ConfigSchema = z.strictObject({
  ...baseConfig,
  /** Where gRPC is served. */
  listenHost: z.string().min(1).default('127.0.0.1'),
  listenPort: port.default(9090),
  /** JSON: the services whose readiness `tollward status` shows, and those that this stack cannot run, with the reason. */
  services: services.prefault('[]'),
  /** Addresses of the nodes themselves, separated by commas. They, 127.0.0.1 and ::1 are never blocked, and touched by no kernel rule. */
  guardedAddresses,
  /** The nodes' management ports, as node-sensor has them: no kernel rule touches them. */
  managementPorts: managementPorts.prefault('22,4222,9090'),
  /** JSON-RPC of a regtest node whose wallet pays and mines for `tollward regtest`; without it those are refused. */
  bitcoinRpcUrl: z.url({ protocol: /^https?$/ }).optional(),
  /** The node's cookie file. */
  bitcoinCookieFile: z.string().min(1).optional(),
})

export type Config = z.output<typeof ConfigSchema>
