import { readFile, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { describe } from 'node:test'
import { acquireCaddy } from '@tollward/acquire'
import { requires, temporaryDirectory } from '@tollward/testkit'
import { proxyTests } from './proxies.ts'
import { type Places, startProxyProcess } from './proxy-stack.ts'

const skip = await requires({ tools: ['nats-server', 'caddy'] })
const ROOT = resolve(import.meta.dirname, '../..')

describe('the same API behind a real Caddy and behind the gateway', { skip }, () => {
  proxyTests({ start, applies: [] })
})

async function start({ proxyPort, apiPort, authorizerPort, tls }: Places, resources: AsyncDisposableStack) {
  const { path } = resources.use(await temporaryDirectory('tollward-caddy-'))
  const config = (await readFile(join(ROOT, 'deploy/caddy/Caddyfile'), 'utf8'))
    .replace('http://:10002 {', tls ? `https://:10002 {\n${certificates(tls)}` : '$&')
    .replaceAll(':10002', `:${proxyPort}`)
    .replaceAll('127.0.0.1:8081', `127.0.0.1:${apiPort}`)
    .replaceAll('127.0.0.1:9192', `127.0.0.1:${authorizerPort}`)
  const file = join(path, 'Caddyfile')
  await writeFile(file, config)
  const args = ['run', '--adapter', 'caddyfile', '--config', file]
  // It keeps a copy of its configuration, and a storage for certificates.
  const env = { ...process.env, XDG_CONFIG_HOME: path, XDG_DATA_HOME: path }
  return await startProxyProcess(await acquireCaddy(), args, resources, { env })
}

/** As deploy/caddy/README.md has it for bound tokens. */
function certificates({ cert, key }: NonNullable<Places['tls']>): string {
  return `tls ${cert} ${key} {\nclient_auth {\nmode request\n}\n}`
}
