import { existsSync } from 'node:fs'
import {
  AcquireError,
  acquireBitcoind,
  acquireCaddy,
  acquireElectrumx,
  acquireEnvoy,
  acquireGo,
  acquireH2spec,
  acquireHaproxy,
  acquireNatsServer,
  acquireNginx,
  acquireOcsfSchema,
  acquireOpenssl11,
  acquireTraefik,
  findOnPath,
} from '@tollward/acquire'

/** What a test cannot do without. */
export interface Requirements {
  root?: boolean
  /** Programs: servers that Tollward gets by itself (nats-server, bitcoind, electrumx, envoy, go, h2spec, nginx, caddy, haproxy, traefik), all others on the PATH. */
  tools?: readonly string[]
  /** Files of the system, such as `/sys/kernel/btf/vmlinux`. */
  files?: readonly string[]
}

const ACQUIRED: Record<string, () => Promise<unknown>> = {
  bitcoind: () => acquireBitcoind(),
  caddy: () => acquireCaddy(),
  electrumx: () => acquireElectrumx(),
  envoy: () => acquireEnvoy(),
  go: () => acquireGo(),
  h2spec: () => acquireH2spec(),
  haproxy: () => acquireHaproxy(),
  'nats-server': () => acquireNatsServer(),
  nginx: () => acquireNginx(),
  'ocsf-schema': () => acquireOcsfSchema(),
  'openssl-1.1': () => acquireOpenssl11(),
  traefik: () => acquireTraefik(),
}

/**
 * For node:test's option `skip`: the reason to skip, naming all that is missing, or false. With TOLLWARD_REQUIRE=all it
 * throws instead, so that the test file fails: `test('…', { skip: await requires({ tools: ['nats-server'] }) }, …)`.
 */
export async function requires(requirements: Requirements): Promise<string | false> {
  const missing = await missingOf(requirements)
  if (missing.length === 0) return false
  const reason = `missing: ${missing.join(', ')}`
  if (process.env.TOLLWARD_REQUIRE === 'all') throw new Error(`TOLLWARD_REQUIRE=all, but ${reason}`)
  return reason
}

async function missingOf({ root = false, tools = [], files = [] }: Requirements): Promise<string[]> {
  const missing: string[] = []
  if (root && process.getuid?.() !== 0) missing.push('root')
  for (const tool of tools) {
    const reason = await whyMissing(tool)
    if (reason !== undefined) missing.push(reason)
  }
  return [...missing, ...files.filter((file) => !existsSync(file))]
}

async function whyMissing(tool: string): Promise<string | undefined> {
  const acquire = ACQUIRED[tool]
  if (acquire === undefined) return (await findOnPath(tool)) === undefined ? tool : undefined
  try {
    await acquire()
    return undefined
  } catch (error) {
    if (error instanceof AcquireError) return `${tool} (${error.message.replaceAll('\n', '; ')})`
    throw error
  }
}
