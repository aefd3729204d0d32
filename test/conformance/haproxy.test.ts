import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { describe, test } from 'node:test'
import { acquireHaproxy } from '@tollward/acquire'
import { eventually, freePort, requires, temporaryDirectory } from '@tollward/testkit'
import { proxyTests } from './proxies.ts'
import { type Places, startCountingApi, startProxyProcess } from './proxy-stack.ts'

const skip = await requires({ tools: ['nats-server', 'haproxy'] })
const SCRIPT = 'deploy/haproxy/tollward.lua'
const ROOT = resolve(import.meta.dirname, '../..')

describe('the same API behind a real HAProxy and behind the gateway', { skip }, () => {
  proxyTests({ start, applies: ['query', 'headers'] })

  test('a script that fails refuses, though HAProxy goes on after it', async () => {
    await using resources = new AsyncDisposableStack()
    const api = await startCountingApi(resources)
    const { path } = resources.use(await temporaryDirectory('tollward-haproxy-'))
    const script = join(path, 'broken.lua')
    const broken = `core.register_action('tollward_decide', { 'http-req' }, function() error('broken') end)
core.register_action('tollward_tell', { 'http-res' }, function() end)`
    await writeFile(script, broken)
    const [proxyPort, authorizerPort] = [await freePort(), await freePort()]
    await start({ proxyPort, apiPort: api.port, authorizerPort }, resources, script)
    const url = `http://127.0.0.1:${proxyPort}/public`
    const answer = await eventually(() => fetch(url), { what: 'HAProxy serves' })
    assert.deepEqual([answer.status, api.arrived()], [503, 0])
    assert.equal(((await answer.json()) as { type: string }).type, 'https://tollward.dev/problems/unavailable')
  })
})

async function start(
  { proxyPort, apiPort, authorizerPort, tls }: Places,
  resources: AsyncDisposableStack,
  script = SCRIPT,
) {
  const { path } = resources.use(await temporaryDirectory('tollward-haproxy-'))
  const config = (await readFile(join(ROOT, 'deploy/haproxy/haproxy.cfg'), 'utf8'))
    .replace(SCRIPT, script)
    .replace('bind 127.0.0.1:10003', tls ? `$& ssl crt ${tls.both} ca-file ${tls.authority} verify optional` : '$&')
    .replaceAll('127.0.0.1:10003', `127.0.0.1:${proxyPort}`)
    .replaceAll('127.0.0.1:8081', `127.0.0.1:${apiPort}`)
    .replaceAll('127.0.0.1:9192', `127.0.0.1:${authorizerPort}`)
  const file = join(path, 'haproxy.cfg')
  await writeFile(file, config)
  return await startProxyProcess(await acquireHaproxy(), ['-db', '-f', file], resources, { cwd: ROOT })
}
