import { readFile, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { describe } from 'node:test'
import { acquireCaddy } from '@tollward/acquire'
import { requires, temporaryDirectory } from '@tollward/testkit'
import { type Places, proxyTests, startProxyProcess } from './proxies.ts'

const skip = await requires({ tools: ['nats-server', 'caddy'] })
const ROOT = resolve(import.meta.dirname, '../..')

describe('the same API behind a real Caddy and behind the gateway', { skip }, () => {
  proxyTests({ start, applies: [] })
})

async function start({ proxyPort, apiPort, authorizerPort }: Places, resources: AsyncDisposableStack) {
  const { path } = resources.use(await temporaryDirectory('tollward-caddy-'))
  const config = (await readFile(join(ROOT, 'deploy/caddy/Caddyfile'), 'utf8'))
    .replaceAll(':10002', `:${proxyPort}`)
    .replaceAll('127.0.0.1:8081', `127.0.0.1:${apiPort}`)
    .replaceAll('127.0.0.1:9192', `127.0.0.1:${authorizerPort}`)
  const file = join(path, 'Caddyfile')
  await writeFile(file, config)
  return await startProxyProcess(await acquireCaddy(), ['run', '--adapter', 'caddyfile', '--config', file], resources)
}
