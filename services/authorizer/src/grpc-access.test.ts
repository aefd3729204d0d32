import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { copyFileSync, existsSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { connect } from 'node:http2'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { connect as connectTls } from 'node:tls'
import { credentials } from '@grpc/grpc-js'
import { Authorization } from '@tollward/contracts/envoy'
import { grpcClient } from '@tollward/contracts/grpc'
import { EXAMPLE_DOCUMENTS, type Neighbours, startNeighbours } from '@tollward/decision/testing'
import { eventually, freePort, requires, type Service, startService, temporaryDirectory } from '@tollward/testkit'

const skip = await requires({ tools: ['nats-server', 'openssl'] })

interface Pair {
  readonly key: string
  readonly cert: string
}

const QUESTION = {
  attributes: {
    source: { address: { address: { case: 'socketAddress' as const, value: { address: '192.0.2.1' } } } },
    request: { http: { method: 'GET', path: '/public', host: 'api.example', scheme: 'https' } },
  },
}

describe('who may ask over gRPC', { skip }, () => {
  let resources: AsyncDisposableStack
  let neighbours: Neighbours
  let directory: string

  before(async () => {
    resources = new AsyncDisposableStack()
    neighbours = resources.use(await startNeighbours())
    await neighbours.apply(EXAMPLE_DOCUMENTS)
    directory = resources.use(await temporaryDirectory()).path
    const authority = ['-x509', '-subj', '/CN=authority', ...out('ca')]
    openssl(['req', ...KEY, ...authority])
    openssl(['req', ...KEY, '-x509', '-subj', '/CN=stranger', ...out('stranger')])
    for (const name of ['server', 'later', 'envoy']) signed(name)
  })
  after(() => resources.disposeAsync())

  const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
  const openssl = (args: string[]) => execFileSync('openssl', args, { stdio: 'pipe' })
  const at = (name: string) => join(directory, name)
  const out = (name: string) => ['-days', '1', '-keyout', at(`${name}.key`), '-out', at(`${name}.pem`)]

  function signed(name: string): void {
    openssl(['req', ...KEY, '-subj', `/CN=${name}`, '-keyout', at(`${name}.key`), '-out', at(`${name}.csr`)])
    writeFileSync(at(`${name}.ext`), 'subjectAltName=DNS:localhost,IP:127.0.0.1')
    const by = ['-CA', at('ca.pem'), '-CAkey', at('ca.key'), '-CAcreateserial', '-extfile', at(`${name}.ext`)]
    openssl(['x509', '-req', '-in', at(`${name}.csr`), ...by, '-days', '1', '-out', at(`${name}.pem`)])
  }

  const pair = (name: string): Pair => ({
    key: readFileSync(at(`${name}.key`), 'utf8'),
    cert: readFileSync(at(`${name}.pem`), 'utf8'),
  })

  async function start(env: NodeJS.ProcessEnv): Promise<Service> {
    return resources.use(
      await startService('authorizer', {
        TOLLWARD_NATS_URL: neighbours.nats.url,
        TOLLWARD_HEALTH_PORT: String(await freePort()),
        TOLLWARD_HTTP_PORT: String(await freePort()),
        ...env,
      }),
    )
  }

  function tls(port: number, client?: Pair) {
    const ca = readFileSync(at('ca.pem'))
    const own = client ? ([Buffer.from(client.key), Buffer.from(client.cert)] as const) : []
    return grpcClient(Authorization, `localhost:${port}`, credentials.createSsl(ca, ...own))
  }

  /** The name in the certificate that the server shows now. */
  async function shown(port: number): Promise<string> {
    const { promise, resolve, reject } = Promise.withResolvers<string>()
    const options = { host: '127.0.0.1', port, ca: readFileSync(at('ca.pem')), ALPNProtocols: ['h2'], ...pair('envoy') }
    const socket = connectTls(options, () => resolve(String(socket.getPeerCertificate().subject.CN)))
    socket.on('error', reject)
    return await promise.finally(() => socket.destroy())
  }

  async function served(name: string, more: NodeJS.ProcessEnv = {}) {
    const port = await freePort()
    for (const kind of ['key', 'pem']) copyFileSync(at(`server.${kind}`), at(`${name}.${kind}`))
    const service = await start({
      TOLLWARD_GRPC_PORT: String(port),
      TOLLWARD_GRPC_TLS_CERT_FILE: at(`${name}.pem`),
      TOLLWARD_GRPC_TLS_KEY_FILE: at(`${name}.key`),
      ...more,
    })
    return { port, service, [Symbol.asyncDispose]: () => service[Symbol.asyncDispose]() }
  }

  test('over TLS, with an authority for clients, only who has a certificate of it', async () => {
    await using it = await served('mutual', { TOLLWARD_GRPC_CLIENT_CA_FILE: at('ca.pem') })
    using known = tls(it.port, pair('envoy'))
    assert.equal((await known.check(QUESTION, { timeoutMs: 5000 })).status?.code, 0)
    for (const client of [undefined, pair('stranger')]) {
      using unknown = tls(it.port, client)
      await assert.rejects(unknown.check(QUESTION, { timeoutMs: 5000 }), { code: 14 })
    }
    const plain = connect(`http://127.0.0.1:${it.port}`)
    const { promise, resolve } = Promise.withResolvers<unknown>()
    plain.on('error', resolve)
    plain.on('close', resolve)
    await promise
  })

  test('over TLS alone, whoever comes', async () => {
    await using it = await served('open')
    using anybody = tls(it.port)
    assert.equal((await anybody.check(QUESTION, { timeoutMs: 5000 })).status?.code, 0)
  })

  test('a certificate that is replaced is shown from then on, and no connection drops; a bad one changes nothing', async () => {
    await using it = await served('changing', { TOLLWARD_GRPC_CLIENT_CA_FILE: at('ca.pem') })
    using client = tls(it.port, pair('envoy'))
    assert.equal((await client.check(QUESTION, { timeoutMs: 5000 })).status?.code, 0)
    const session = connect(`https://localhost:${it.port}`, { ca: readFileSync(at('ca.pem')), ...pair('envoy') })
    const ended = Promise.withResolvers<boolean>()
    session.on('close', () => ended.resolve(true))
    assert.equal(await shown(it.port), 'server')

    writeFileSync(at('changing.pem'), 'nonsense')
    await it.service.line(/certificate not renewed/)
    assert.equal(await shown(it.port), 'server')
    for (const kind of ['key', 'pem']) {
      copyFileSync(at(`later.${kind}`), at(`changing.${kind}.new`))
      renameSync(at(`changing.${kind}.new`), at(`changing.${kind}`))
    }
    await eventually(async () => (await shown(it.port)) === 'later', { what: 'the new one is shown' })
    assert.equal((await client.check(QUESTION, { timeoutMs: 5000 })).status?.code, 0)
    const pinged = new Promise<boolean>((resolve) => session.ping((error) => resolve(error !== null)))
    assert.equal(await Promise.race([pinged, ended.promise]), false, 'the old connection goes on')
    session.destroy()
  })

  test('a key that others may read, and half of the settings, keep it from starting', async () => {
    execFileSync('chmod', ['644', at('stranger.key')])
    const [certFile, keyFile] = [at('stranger.pem'), at('stranger.key')]
    const wrong: [NodeJS.ProcessEnv, RegExp][] = [
      [{ TOLLWARD_GRPC_TLS_CERT_FILE: certFile, TOLLWARD_GRPC_TLS_KEY_FILE: keyFile }, /can be read by others/],
      [{ TOLLWARD_GRPC_TLS_CERT_FILE: certFile }, /belong together/],
      [{ TOLLWARD_GRPC_CLIENT_CA_FILE: certFile }, /needs both/],
      [{ TOLLWARD_GRPC_SOCKET: at('s'), TOLLWARD_GRPC_CLIENT_CA_FILE: certFile }, /without TLS/],
      [{ TOLLWARD_GRPC_SOCKET: certFile }, /is no socket/],
      [
        { TOLLWARD_GRPC_TLS_CERT_FILE: at('server.pem'), TOLLWARD_GRPC_TLS_KEY_FILE: at('later.key') },
        /key values mismatch/,
      ],
    ]
    const refused = async ([env, why]: (typeof wrong)[number]) => {
      await assert.rejects(start({ TOLLWARD_GRPC_PORT: String(await freePort()), ...env }), why)
    }
    await Promise.all(wrong.map(refused))
  })

  test('on a unix socket, for its group; what a dead process left is replaced, a live one is not', async () => {
    const path = at('authorizer.sock')
    const service = await start({ TOLLWARD_GRPC_SOCKET: path })
    assert.equal(statSync(path).mode & 0o777, 0o660)
    using client = grpcClient(Authorization, `unix:${path}`, credentials.createInsecure())
    assert.equal((await client.check(QUESTION, { timeoutMs: 5000 })).status?.code, 0)
    await assert.rejects(start({ TOLLWARD_GRPC_SOCKET: path }), /another process listens/)
    assert.equal((await client.check(QUESTION, { timeoutMs: 5000 })).status?.code, 0)

    await service.kill()
    assert.ok(existsSync(path), 'a killed process leaves its file')
    await service.start()
    await eventually(async () => (await client.check(QUESTION, { timeoutMs: 5000 })).status?.code === 0, {
      what: 'it is answered again',
    })
    await service.stop()
    assert.equal(existsSync(path), false)
  })
})
