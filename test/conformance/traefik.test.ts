import assert from 'node:assert/strict'
import { once } from 'node:events'
import { cp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join, resolve } from 'node:path'
import { describe, test } from 'node:test'
import { acquireTraefik } from '@tollward/acquire'
import { freePort, requires, temporaryDirectory } from '@tollward/testkit'
import { type Places, proxyTests, startProxyProcess } from './proxies.ts'

const skip = await requires({ tools: ['nats-server', 'traefik'] })
const FOLDER = resolve(import.meta.dirname, '../../deploy/traefik')

describe('the same API behind a real Traefik and behind the gateway', { skip }, () => {
  proxyTests({
    start,
    applies: ['query', 'headers'],
    sets: ['x-forwarded-port', 'x-forwarded-server', 'x-real-ip'],
    semicolon: '%3B',
  })

  test('without the plugin nothing is served', async () => {
    await using resources = new AsyncDisposableStack()
    let arrived = 0
    const api = createServer((_request, response) => {
      arrived += 1
      response.end()
    }).listen(0, '127.0.0.1')
    resources.defer(() => void api.close())
    await once(api, 'listening')
    const [proxyPort, authorizerPort] = [await freePort(), await freePort()]
    const { port: apiPort } = api.address() as AddressInfo
    const broken = (folder: string) => rm(join(folder, 'plugins-local'), { recursive: true })
    const traefik = await start({ proxyPort, apiPort, authorizerPort }, resources, broken)
    // Before it has read its routes it answers 404 to everything.
    await traefik.line(/invalid middleware/)
    const { status } = await fetch(`http://127.0.0.1:${proxyPort}/public`)
    assert.deepEqual([status, arrived], [404, 0])
  })
})

async function start(
  { proxyPort, apiPort, authorizerPort, tls }: Places,
  resources: AsyncDisposableStack,
  spoil: (folder: string) => Promise<void> = async () => {},
) {
  const { path } = resources.use(await temporaryDirectory('tollward-traefik-'))
  await cp(FOLDER, path, { recursive: true })
  const change = async (name: string, changed: (text: string) => string) =>
    await writeFile(join(path, name), changed(await readFile(join(path, name), 'utf8')))
  await change('traefik.yaml', (text) => text.replace('127.0.0.1:10004', `127.0.0.1:${proxyPort}`))
  await change('routes.yaml', (text) => {
    const placed = text
      .replaceAll('127.0.0.1:8081', `127.0.0.1:${apiPort}`)
      .replaceAll('127.0.0.1:9192', `127.0.0.1:${authorizerPort}`)
    return tls ? withTls(placed, tls) : placed
  })
  await spoil(path)
  const args = ['--configFile=traefik.yaml']
  return await startProxyProcess(await acquireTraefik(), args, resources, { cwd: path })
}

/** As deploy/traefik/README.md has it for bound tokens. */
function withTls(routes: string, { cert, key }: NonNullable<Places['tls']>): string {
  return `${routes.replace('entryPoints: [web]', '$&, tls: {}')}
tls:
  certificates: [{ certFile: ${cert}, keyFile: ${key} }]
  options: { default: { clientAuth: { clientAuthType: RequestClientCert } } }
`
}
