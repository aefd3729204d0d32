// npm start: the whole stack on this machine. --fresh forgets its state first; --state DIR keeps it elsewhere; --upstream URL puts
// the gateway in front of an API of yours.
import { existsSync, readdirSync, rmSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { withLock } from '@tollward/acquire'
import { createDisplay } from './display.ts'
import { type Paths, pathsIn, REPOSITORY } from './paths.ts'
import { localUrl, PORTS } from './ports.ts'
import { type Stack, startStack } from './stack.ts'

/** What --fresh leaves: it took time to get, and holds no state. */
const KEPT = new Set(['compile-cache', 'tools', 'installed', 'install.lock', 'stack.lock', 'bench'])

const { values } = parseArgs({
  options: {
    fresh: { type: 'boolean', default: false },
    state: { type: 'string', default: join(REPOSITORY, '.tollward') },
    upstream: { type: 'string' },
  },
})
const paths = pathsIn(resolve(values.state))
const display = createDisplay(process.stdout, (name) => relative(process.cwd(), paths.log(name)))
const abort = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    if (!abort.signal.aborted) display.line('Stopping.')
    abort.abort()
  })
}

try {
  await withLock(paths.lock, runStack, {
    signal: abort.signal,
    onWait: (holder) => {
      display.line(`A stack runs here already (process ${holder}); end it first.`)
      process.exit(1)
    },
  })
} catch (error) {
  if (!abort.signal.aborted) {
    display.finish()
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`)
    process.exitCode = 1
  }
}

async function runStack(): Promise<void> {
  if (values.fresh) forget(paths)
  const startMs = performance.now()
  const { upstream } = values
  await using stack = await startStack({
    paths,
    display,
    signal: abort.signal,
    ...(upstream === undefined ? {} : { upstreamUrl: upstream }),
  })
  display.line(welcome(stack, (performance.now() - startMs) / 1000))
  await new Promise<void>((done) => {
    if (abort.signal.aborted) done()
    else abort.signal.addEventListener('abort', () => done(), { once: true })
  })
}

function forget({ state }: Paths): void {
  if (!existsSync(state)) return
  for (const name of readdirSync(state))
    if (!KEPT.has(name)) rmSync(join(state, name), { recursive: true, force: true })
}

function welcome({ off }: Stack, seconds: number): string {
  const sensor =
    off['node-sensor'] === undefined ? 'watches lo and drops whom it must' : `is off: ${off['node-sensor']}`
  return `
Tollward is ready after ${seconds.toFixed(1)} s. Ctrl-C stops everything.

  gateway        ${localUrl(PORTS.gatewayHttp)}  https://localhost:${PORTS.gatewayHttps} (CA: ${relative(process.cwd(), paths.caCertificate)})
  tokens         ${localUrl(PORTS.issuer)}  discovery: /.well-known/openid-configuration; with client certificates: https://127.0.0.1:${PORTS.issuerMtls}
  payments       ${localUrl(PORTS.verifier)}/plans
  ext_authz      127.0.0.1:${PORTS.authorizerGrpc} (gRPC)  ${localUrl(PORTS.authorizerHttp)}/forward-auth
  operators      127.0.0.1:${PORTS.adminApi} (gRPC)  npx --no tollward status
  findings       ${relative(process.cwd(), paths.findings)} and NATS, for SIEMs: ${relative(process.cwd(), paths.siem)}
  node sensor    ${sensor}

Try, in another terminal:
  npm run demo                                   the whole loop, step by step
  curl -i ${localUrl(PORTS.gatewayHttp)}/public          anybody may
  curl -i ${localUrl(PORTS.gatewayHttp)}/orders          401: who are you?
  npx --no tollward users create NAME            somebody who can sign in, at ${localUrl(PORTS.issuer, '/account')}
`
}
