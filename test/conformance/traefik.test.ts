import assert from 'node:assert/strict'
import { cp, readFile, rm, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { describe, test } from 'node:test'
import { acquireTraefik } from '@tollward/acquire'
import { eventually, freePort, requires, temporaryDirectory } from '@tollward/testkit'
import { proxyTests } from './proxies.ts'
import { type Places, startCountingApi, startProxyProcess } from './proxy-stack.ts'

const skip = await requires({ tools: ['nats-server', 'traefik'] })
const FOLDER = resolve(import.meta.dirname, '../../deploy/traefik')

describe('the same API behind a real Traefik and behind the gateway', { skip }, () => {
  proxyTests({
    start,
    startBehindBalancer: (places, resources) => start(places, resources, trustBalancer),
    applies: ['query', 'headers'],
    sets: ['x-forwarded-port', 'x-forwarded-server', 'x-real-ip'],
    semicolon: '%3B',
  })

  test('without the plugin nothing is served', async () => {
    await using resources = new AsyncDisposableStack()
    const api = await startCountingApi(resources)
    const [proxyPort, authorizerPort] = [await freePort(), await freePort()]
    const broken = (folder: string) => rm(join(folder, 'plugins-local'), { recursive: true })
    const traefik = await start({ proxyPort, apiPort: api.port, authorizerPort }, resources, broken)
    // Before it has read its routes it answers 404 to everything.
    await traefik.line(/invalid middleware/)
    const { status } = await fetch(`http://127.0.0.1:${proxyPort}/public`)
    assert.deepEqual([status, api.arrived()], [404, 0])
  })

  test('whatever nobody decided about is refused, and its output says how much and why', async () => {
    await using resources = new AsyncDisposableStack()
    const api = await startCountingApi(resources)
    const [proxyPort, authorizerPort] = [await freePort(), await freePort()]
    const traefik = await start({ proxyPort, apiPort: api.port, authorizerPort }, resources)
    const isRefused = async () => (await fetch(`http://127.0.0.1:${proxyPort}/public`)).status === 503
    await eventually(isRefused, { what: 'Traefik has read its routes' })
    await traefik.line(
      /tollward: requests refused, as nobody decided about them: [1-9]\d*, the last one because of: .*refused/,
    )
    assert.equal(api.arrived(), 0)
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

/** As deploy/traefik/README.md has it for a load balancer in front. */
async function trustBalancer(folder: string): Promise<void> {
  const file = join(folder, 'traefik.yaml')
  const text = await readFile(file, 'utf8')
  await writeFile(file, text.replace('    http:\n', '    forwardedHeaders: { trustedIPs: [127.0.0.1] }\n$&'))
}

/** As deploy/traefik/README.md has it for bound tokens. */
function withTls(routes: string, { cert, key }: NonNullable<Places['tls']>): string {
  return `${routes.replace('entryPoints: [web]', '$&, tls: {}')}
tls:
  certificates: [{ certFile: ${cert}, keyFile: ${key} }]
  options: { default: { clientAuth: { clientAuthType: RequestClientCert } } }
`
}
