import { readFile, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { describe } from 'node:test'
import { acquireNginx } from '@tollward/acquire'
import { requires, temporaryDirectory } from '@tollward/testkit'
import { proxyTests } from './proxies.ts'
import { type Places, startProxyProcess } from './proxy-stack.ts'

const skip = await requires({ tools: ['nats-server', 'nginx'] })
const CONFIG = resolve(import.meta.dirname, '../../deploy/nginx/nginx.conf')

describe('the same API behind a real nginx and behind the gateway', { skip }, () => {
  proxyTests({ start, applies: ['query'] })
})

async function start({ proxyPort, apiPort, authorizerPort, tls }: Places, resources: AsyncDisposableStack) {
  const { path } = resources.use(await temporaryDirectory('tollward-nginx-'))
  const config = (await readFile(CONFIG, 'utf8'))
    .replace('listen 127.0.0.1:10001;', tls ? `listen 127.0.0.1:10001 ssl; ${certificates(tls)}` : '$&')
    .replaceAll('127.0.0.1:10001', `127.0.0.1:${proxyPort}`)
    .replaceAll('127.0.0.1:8081', `127.0.0.1:${apiPort}`)
    .replaceAll('127.0.0.1:9192', `127.0.0.1:${authorizerPort}`)
  const file = join(path, 'nginx.conf')
  await writeFile(file, config)
  return await startProxyProcess(await acquireNginx(), ['-p', path, '-c', file, '-e', 'stderr'], resources)
}

/** As deploy/nginx/README.md has it for bound tokens. */
function certificates({ cert, key }: NonNullable<Places['tls']>): string {
  return `ssl_certificate ${cert}; ssl_certificate_key ${key}; ssl_verify_client optional_no_ca;`
}
