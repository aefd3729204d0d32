import { readFile, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { describe } from 'node:test'
import { acquireHaproxy } from '@tollward/acquire'
import { requires, temporaryDirectory } from '@tollward/testkit'
import { type Places, proxyTests, startProxyProcess } from './proxies.ts'

const skip = await requires({ tools: ['nats-server', 'haproxy'] })
const ROOT = resolve(import.meta.dirname, '../..')

describe('the same API behind a real HAProxy and behind the gateway', { skip }, () => {
  proxyTests({ start, applies: ['query', 'headers'] })
})

async function start({ proxyPort, apiPort, authorizerPort, tls }: Places, resources: AsyncDisposableStack) {
  const { path } = resources.use(await temporaryDirectory('tollward-haproxy-'))
  const config = (await readFile(join(ROOT, 'deploy/haproxy/haproxy.cfg'), 'utf8'))
    .replace('bind 127.0.0.1:10003', tls ? `$& ssl crt ${tls.both} ca-file ${tls.authority} verify optional` : '$&')
    .replaceAll('127.0.0.1:10003', `127.0.0.1:${proxyPort}`)
    .replaceAll('127.0.0.1:8081', `127.0.0.1:${apiPort}`)
    .replaceAll('127.0.0.1:9192', `127.0.0.1:${authorizerPort}`)
  const file = join(path, 'haproxy.cfg')
  await writeFile(file, config)
  return await startProxyProcess(await acquireHaproxy(), ['-db', '-f', file], resources, { cwd: ROOT })
}
