import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash, X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer, request as httpRequest, type IncomingMessage, type ServerResponse } from 'node:http'
import { request as httpsRequest } from 'node:https'
import { connect } from 'node:net'
import { after, before, describe, test } from 'node:test'
import type { SecureContextOptions } from 'node:tls'
import { FEED_STALE_AFTER_MS } from '@tollward/decision'
import { EXAMPLE_DOCUMENTS, type Neighbours, newProofKey, startNeighbours } from '@tollward/decision/testing'
import { createApi } from '@tollward/example-api'
import {
  eventually,
  freePort,
  requires,
  type Service,
  startService,
  startTcpProxy,
  temporaryDirectory,
} from '@tollward/testkit'

const skip = await requires({ tools: ['nats-server', 'openssl'] })
const BODY_BYTES_MAX = 100_000
const UPSTREAM_TIMEOUT_MS = 500

const DOCUMENTS = `${EXAMPLE_DOCUMENTS}
---
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: tests }
spec:
  hosts: [tests.example]
  rules:
    - { name: all, match: { prefix: / }, anonymous: true }
---
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: trial }
spec:
  hosts: [trial.example]
  mode: observe
  rules:
    - { name: echo, match: { path: /echo }, require: { token: { scopes: [orders] } } }
---
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: slow }
spec:
  hosts: [slow.example]
  sourceLimit: { requests: 3, perSeconds: 60 }
  rules:
    - { name: all, match: { prefix: / }, anonymous: true }
`

/** Makes a certificate that vouches for itself, with its key. */
function selfSigned(directory: string, name: string): { keyFile: string; certFile: string } {
  const [keyFile, certFile] = [`${directory}/${name}.key.pem`, `${directory}/${name}.cert.pem`]
  const subject = ['-subj', `/CN=${name}`, '-days', '1', '-keyout', keyFile, '-out', certFile]
  execFileSync(
    'openssl',
    ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', ...subject],
    { stdio: 'pipe' },
  )
  execFileSync('chmod', ['600', keyFile])
  return { keyFile, certFile }
}

interface Answer {
  status: number
  headers: IncomingMessage['headers']
  body: string
}

describe('gateway', { skip }, () => {
  let neighbours: Neighbours
  let gateway: Service
  let resources: AsyncDisposableStack
  let httpPort: number
  let httpsPort: number
  let env: NodeJS.ProcessEnv
  let clientCertificates: { key: string; cert: string }[] = []
  /** What the API behind the gateway does with paths below /behind. */
  let behind: (request: IncomingMessage, response: ServerResponse) => void = () => {}

  before(async () => {
    resources = new AsyncDisposableStack()
    neighbours = resources.use(await startNeighbours())
    await neighbours.apply(DOCUMENTS)
    const upstreamPort = await startUpstream(resources)
    const directory = resources.use(await temporaryDirectory())
    const { keyFile: tlsKeyFile, certFile: tlsCertFile } = selfSigned(directory.path, 'localhost')
    clientCertificates = ['own', 'other'].map((name) => {
      const { keyFile, certFile } = selfSigned(directory.path, name)
      return { key: readFileSync(keyFile, 'utf8'), cert: readFileSync(certFile, 'utf8') }
    })
    ;[httpPort, httpsPort] = [await freePort(), await freePort()]
    env = {
      TOLLWARD_NATS_URL: neighbours.nats.url,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_HTTP_PORT: String(httpPort),
      TOLLWARD_HTTPS_PORT: String(httpsPort),
      TOLLWARD_TLS_CERT_FILE: tlsCertFile,
      TOLLWARD_TLS_KEY_FILE: tlsKeyFile,
      TOLLWARD_UPSTREAM_URL: `http://127.0.0.1:${upstreamPort}`,
      TOLLWARD_UPSTREAM_TIMEOUT_MS: String(UPSTREAM_TIMEOUT_MS),
      TOLLWARD_BODY_BYTES_MAX: String(BODY_BYTES_MAX),
      TOLLWARD_PAYMENT_URL: 'http://pay.example',
    }
    gateway = resources.use(await startService('gateway', env))
  })
  after(() => resources.disposeAsync())

  async function startUpstream(stack: AsyncDisposableStack): Promise<number> {
    const api = createApi()
    await api.ready()
    const server = createServer((request, response) => {
      if (request.url?.startsWith('/behind')) behind(request, response)
      else api.routing(request, response)
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    stack.defer(() => {
      server.closeAllConnections()
      server.close()
    })
    const address = server.address()
    return typeof address === 'object' && address ? address.port : 0
  }

  async function ask(
    path: string,
    options: {
      method?: string
      token?: string
      host?: string
      headers?: Record<string, string | string[]>
      body?: string
      from?: string
      secure?: boolean
      tls?: SecureContextOptions & { session?: Buffer }
      onSession?: (session: Buffer) => void
    } = {},
  ): Promise<Answer> {
    const {
      method = 'GET',
      token,
      host = 'api.example',
      headers = {},
      body,
      from = '127.0.0.1',
      tls,
      onSession = () => {},
      secure = tls !== undefined,
    } = options
    const send = secure ? httpsRequest : httpRequest
    const sent = send({
      host: '127.0.0.1',
      port: secure ? httpsPort : httpPort,
      localAddress: from,
      path,
      method,
      headers: { host, ...(token && { authorization: `Bearer ${token}` }), ...headers },
      agent: false,
      rejectUnauthorized: false,
      ...tls,
    })
    sent.on('socket', (socket) => socket.on('session', onSession))
    sent.end(body)
    const [response]: [IncomingMessage] = (await once(sent, 'response')) as [IncomingMessage]
    let text = ''
    for await (const chunk of response) text += chunk
    return { status: response.statusCode ?? 0, headers: response.headers, body: text }
  }

  /** Sends bytes as they are and reads until the connection closes. */
  async function raw(bytes: string): Promise<string> {
    const socket = connect(httpPort, '127.0.0.1')
    socket.write(bytes)
    let text = ''
    for await (const chunk of socket) text += chunk
    return text
  }

  test("the API owner's walk: public, unknown, unpaid, paid, not served", async () => {
    assert.equal((await ask('/public')).status, 200)
    const unknown = await ask('/orders')
    assert.equal(unknown.status, 401)
    assert.equal(
      unknown.headers['www-authenticate'],
      'Bearer realm="tollward", DPoP realm="tollward", algs="ES256 EdDSA"',
    )
    assert.equal((await ask('/nowhere')).status, 401)
    const token = neighbours.issue('walker', ['orders'])
    assert.equal((await ask('/nowhere', { token })).status, 403)
    assert.equal((await ask('/internal/x', { token })).status, 403)
    const scopeless = await ask('/orders', { token: neighbours.issue('walker', []) })
    assert.equal(scopeless.status, 403)
    assert.match(scopeless.headers['www-authenticate'] ?? '', /error="insufficient_scope", scope="orders"/)
    const unpaid = await ask('/orders', { token })
    assert.equal(unpaid.status, 402)
    assert.equal(unpaid.headers['content-type'], 'application/problem+json')
    assert.equal(unpaid.headers['cache-control'], 'no-store')
    assert.equal(JSON.parse(unpaid.body).invoices, 'http://pay.example/invoices')
    await neighbours.activatePass('walker', 'orders', 100)
    await eventually(async () => (await ask('/orders', { token })).status === 200, { what: 'the pass admits' })
    const created = await ask('/orders', {
      token,
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: '{"item":"tea"}',
    })
    assert.equal(created.status, 201)
    const order = await ask(created.headers.location ?? '', { token })
    assert.equal(JSON.parse(order.body).item, 'tea')
  })

  test('every answer carries a decision id, a UUIDv7', async () => {
    for (const path of ['/public', '/orders', '//']) {
      const { headers } = await ask(path)
      assert.match(String(headers['x-tollward-decision']), /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-/, path)
    }
  })

  test('identity headers that a client sends never arrive, those of the token do', async () => {
    const token = neighbours.issue('echo-client', ['orders'])
    const headers = {
      'X-Tollward-Client': 'admin',
      'x-tollward-subject': ['root', 'admin'],
      X_Tollward_Pass: 'free',
      'x-tollward-future': '1',
      'x-bitcoin-txid': 'ab'.repeat(32),
    }
    const arrived = JSON.parse((await ask('/echo', { token, headers })).body).headers
    assert.equal(arrived.authorization, 'Bearer internal.echo-client.jwt')
    assert.equal(arrived['x-tollward-client'], 'echo-client')
    assert.equal(arrived['x-tollward-subject'], 'echo-client')
    assert.equal(arrived['x-tollward-scopes'], 'orders')
    for (const name of ['x-tollward-pass', 'x_tollward_pass', 'x-tollward-future', 'x-bitcoin-txid']) {
      assert.equal(arrived[name], undefined, name)
    }
    const anonymous = JSON.parse((await ask('/echo', { host: 'tests.example', token, headers })).body).headers
    const ours = Object.keys(anonymous).filter((name) => /tollward|authorization|bitcoin/.test(name))
    assert.deepEqual(ours, ['x-tollward-decision'])
  })

  test('Connection cannot drop what the gateway adds', async () => {
    const token = neighbours.issue('echo-client', ['orders'])
    assert.equal((await ask('/echo', { token, headers: { connection: 'close, x-tollward-client' } })).status, 400)
    assert.equal((await ask('/echo', { token, headers: { connection: 'close, authorization' } })).status, 400)
  })

  test('the API gets the canonical path and the query as it came', async () => {
    const token = neighbours.issue('echo-client', ['orders'])
    const { url } = JSON.parse((await ask("/%65cho?a=%2F..%2f&b='c'&d=e;f", { token })).body)
    assert.equal(url, "/echo?a=%2F..%2f&b='c'&d=e;f")
  })

  test('what can be read in two ways is 400', async () => {
    for (const path of [
      '//orders',
      '/public/../orders',
      '/public%2forders',
      '/public/..;/orders',
      '/public%00',
      '/%c0%af',
    ]) {
      const { status, body } = await ask(path)
      assert.deepEqual([status, JSON.parse(body).type], [400, 'https://tollward.dev/problems/malformed-request'], path)
    }
    const requests = [
      'GET /public HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n',
      'GET http://a/public HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n',
      'GET /public HTTP/1.1\r\nConnection: close\r\n\r\n',
      'GET /public#x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n',
      'POST /public HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
      'GET /public HTTP/1.1\r\nHost: a\r\nX: a\nb\r\n\r\n',
      'nonsense\r\n\r\n',
    ]
    for (const request of requests) {
      const answer = await raw(request)
      assert.match(answer, /^HTTP\/1\.1 400 /, request)
      assert.match(answer, /problem\+json/, request)
      assert.doesNotMatch(answer, /\bat .*\.[jt]s|node_modules/, request)
    }
  })

  test('headers and bodies that are too large are 431 and 413', async () => {
    const large = await raw(`GET /public HTTP/1.1\r\nHost: a\r\nX: ${'x'.repeat(40_000)}\r\n\r\n`)
    assert.match(large, /^HTTP\/1\.1 431 /)
    const many = Array.from({ length: 150 }, (_, index) => `X-${index}: 1\r\n`).join('')
    assert.match(await raw(`GET /public HTTP/1.1\r\nHost: a\r\nConnection: close\r\n${many}\r\n`), /^HTTP\/1\.1 431 /)

    behind = (request, response) => {
      request.resume()
      request.on('end', () => response.end('taken'))
    }
    const post = (body: string, headers = {}) =>
      ask('/behind', { host: 'tests.example', method: 'POST', body, headers })
    assert.equal((await post('x'.repeat(BODY_BYTES_MAX))).body, 'taken')
    assert.equal((await post('x'.repeat(BODY_BYTES_MAX + 1))).status, 413)
    const chunked = await post('x'.repeat(BODY_BYTES_MAX + 1), { 'transfer-encoding': 'chunked' })
    assert.equal(chunked.status, 413)
  })

  test('bodies go on as they come, in both directions', async () => {
    const first = Promise.withResolvers<void>()
    behind = async (request, response) => {
      // What an earlier test sent and gave up may arrive only now.
      if (request.headers['x-test'] !== 'streams') return void response.end()
      for await (const chunk of request) {
        response.write(`got ${chunk};`)
        first.resolve()
      }
      response.end('end')
    }
    const sent = httpRequest({
      host: '127.0.0.1',
      port: httpPort,
      path: '/behind',
      method: 'POST',
      headers: { host: 'tests.example', 'x-test': 'streams' },
      agent: false,
    })
    sent.write('one')
    await first.promise
    sent.end('two')
    const [response] = (await once(sent, 'response')) as [IncomingMessage]
    let text = ''
    for await (const chunk of response) text += chunk
    assert.equal(text, 'got one;got two;end')
  })

  test('a client that goes away in the middle of its body does no harm', async () => {
    const arrived = Promise.withResolvers<void>()
    const ended = Promise.withResolvers<void>()
    behind = (request) => {
      request.once('data', () => arrived.resolve())
      request.once('close', () => ended.resolve())
    }
    const socket = connect(httpPort, '127.0.0.1')
    socket.write('POST /behind HTTP/1.1\r\nHost: tests.example\r\nContent-Length: 1000\r\n\r\nx')
    await arrived.promise
    socket.destroy()
    await ended.promise
    assert.equal((await ask('/public')).status, 200)
  })

  test('an API that fails is 502, one that is too slow 504, and nothing is sent to it twice', async () => {
    let calls = 0
    behind = (request) => {
      calls += 1
      request.socket.destroy()
    }
    const failed = await ask('/behind', { host: 'tests.example' })
    assert.deepEqual(
      [failed.status, JSON.parse(failed.body).type],
      [502, 'https://tollward.dev/problems/upstream-failed'],
    )
    assert.equal(calls, 1)
    behind = () => {
      calls += 1
    }
    const slow = await ask('/behind', { host: 'tests.example' })
    assert.deepEqual([slow.status, JSON.parse(slow.body).type], [504, 'https://tollward.dev/problems/upstream-timeout'])
    behind = (_request, response) => {
      calls += 1
      response.writeHead(503, { 'retry-after': '0' }).end()
    }
    assert.equal((await ask('/behind', { host: 'tests.example' })).status, 503)
    assert.equal(calls, 3)
  })

  test('429 says when to come back', async () => {
    const answers: Answer[] = []
    for (let index = 0; index < 4; index++)
      answers.push(await ask('/public', { host: 'slow.example', from: '127.0.0.9' }))
    assert.deepEqual(
      answers.map(({ status }) => status),
      [200, 200, 200, 429],
    )
    const headers = answers[3]?.headers ?? {}
    assert.equal(headers['retry-after'], '20')
    assert.equal(headers['ratelimit-policy'], '"source";q=3;w=60')
    assert.equal(headers.ratelimit, '"source";r=0;t=20')
    assert.equal((await ask('/public', { host: 'slow.example', from: '127.0.0.10' })).status, 200)
  })

  test('a blocked source is refused while another one is not', async () => {
    await neighbours.block('127.0.0.66')
    await eventually(async () => (await ask('/public', { from: '127.0.0.66' })).status === 403, {
      what: 'the source is blocked',
    })
    assert.equal((await ask('/public')).status, 200)
    const disguised = await ask('/public', { from: '127.0.0.66', headers: { 'x-forwarded-for': '127.0.0.1' } })
    assert.equal(disguised.status, 403)
  })

  test('a policy that only observes lets through, and leaves a foreign Authorization alone', async () => {
    const foreign = await ask('/echo', {
      host: 'trial.example',
      headers: { authorization: 'Basic YTpi', 'x-tollward-client': 'admin' },
    })
    assert.equal(foreign.status, 200)
    const { headers } = JSON.parse(foreign.body)
    assert.equal(headers.authorization, 'Basic YTpi')
    assert.equal(headers['x-tollward-client'], undefined)
  })

  test('a token that is bound to a DPoP key passes with a proof for the address that the client used, and once', async () => {
    const key = await newProofKey()
    const confirmation = { method: { case: 'jkt', value: key.thumbprint } } as const
    const token = neighbours.issue('dpop-client', ['orders'], { confirmation })
    const send = async (uri: string, secure = false) => {
      const dpop = await key.proof(token, uri)
      const headers = { authorization: `DPoP ${token}`, dpop }
      const { host } = new URL(uri)
      const first = await ask('/echo?a=b', { host, headers, secure })
      const second = await ask('/echo?a=b', { host, headers, secure })
      assert.ok(first.status !== 200 || second.status === 401, 'a replay is refused')
      return first
    }
    const plain = await send(`http://127.0.0.1:${httpPort}/echo`)
    assert.equal(plain.status, 200)
    const echoed = JSON.parse(plain.body).headers
    assert.equal(echoed.authorization, 'Bearer internal.dpop-client.jwt')
    assert.equal(echoed.dpop, undefined)
    assert.equal((await send(`https://127.0.0.1:${httpsPort}/echo`, true)).status, 200)
    const otherScheme = await send(`https://127.0.0.1:${httpPort}/echo`)
    assert.equal(otherScheme.status, 401)
    assert.match(otherScheme.headers['www-authenticate'] ?? '', /^DPoP .*error="invalid_dpop_proof"/)
    const stolen = await ask('/echo', { token })
    assert.deepEqual(
      [stolen.status, JSON.parse(stolen.body).type],
      [401, 'https://tollward.dev/problems/proof-missing'],
    )
  })

  test('a token that is bound to a client certificate passes on a connection with that certificate only', async () => {
    const [own, other] = clientCertificates
    assert.ok(own && other)
    const value = createHash('sha256').update(new X509Certificate(own.cert).raw).digest('base64url')
    const confirmation = { method: { case: 'x5tS256', value } } as const
    const token = neighbours.issue('mtls-client', ['orders'], { confirmation })
    const sessions: Buffer[] = []
    const first = await ask('/echo', { token, tls: own, onSession: (session) => sessions.push(session) })
    assert.equal(first.status, 200)
    const [session] = sessions
    assert.ok(session)
    assert.equal(
      (await ask('/echo', { token, tls: { ...own, session } })).status,
      200,
      'a session that is taken up again',
    )
    assert.equal((await ask('/echo', { token, tls: other })).status, 401)
    assert.equal((await ask('/echo', { token, secure: true })).status, 401)
    assert.equal((await ask('/echo', { token })).status, 401)
    const unbound = neighbours.issue('mtls-client', ['orders'])
    assert.equal((await ask('/echo', { token: unbound, tls: other })).status, 200)
  })

  test('cut off from revocations, no token passes any more within 5 seconds, and what was missed counts afterwards', async () => {
    await using proxy = await startTcpProxy(neighbours.nats.port)
    const port = await freePort()
    await using cutOff = await startService('gateway', {
      ...env,
      TOLLWARD_NATS_URL: `nats://127.0.0.1:${proxy.port}`,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_HTTP_PORT: String(port),
      TOLLWARD_HTTPS_PORT: String(await freePort()),
    })
    const token = neighbours.issue('cut-off', ['orders'])
    const status = async () => {
      const response = await fetch(`http://127.0.0.1:${port}/echo`, { headers: { authorization: `Bearer ${token}` } })
      await response.arrayBuffer()
      return response.status
    }
    assert.equal(await status(), 200)
    proxy.pause()
    const cutAtMs = performance.now()
    await neighbours.revoke(token)
    let passedAtMs = cutAtMs
    const refused = async () => {
      const askedAtMs = performance.now()
      const passed = (await status()) === 200
      if (passed) passedAtMs = askedAtMs
      return !passed
    }
    await eventually(refused, { what: 'it does not pass any more', timeoutMs: 10_000, intervalMs: 5 })
    assert.ok(passedAtMs - cutAtMs <= FEED_STALE_AFTER_MS, `passed ${passedAtMs - cutAtMs} ms after the cut`)
    proxy.resume()
    const ready = async () => (await fetch(`${cutOff.healthUrl}/healthz/ready`)).ok
    await eventually(ready, { what: 'the gateway hears again', timeoutMs: 15_000 })
    assert.equal(await status(), 401)
  })

  test('https serves the same, and the API is told the scheme', async () => {
    const token = neighbours.issue('tls-client', ['orders'])
    const { status, body } = await ask('/echo', { token, secure: true })
    assert.equal(status, 200)
    assert.equal(JSON.parse(body).headers['x-forwarded-proto'], 'https')
    assert.equal(JSON.parse(body).headers['x-forwarded-for'], '127.0.0.1')
    assert.equal((await ask('/orders', { secure: true })).status, 401)
  })

  test('a request that is under way when the gateway stops is finished', async () => {
    const arrived = Promise.withResolvers<() => void>()
    behind = (_request, response) => arrived.resolve(() => response.end('finished'))
    const asking = ask('/behind', { host: 'tests.example' })
    const finish = await arrived.promise
    const stopping = gateway.stop()
    await eventually(() => gateway.lines.some((line) => line.includes('stopping')) || refusedSoon(), {
      what: 'it takes no more',
    })
    finish()
    assert.equal((await asking).body, 'finished')
    assert.equal(await stopping, 0)
    await gateway.start()

    async function refusedSoon(): Promise<boolean> {
      const socket = connect(httpPort, '127.0.0.1')
      const connected = await Promise.race([
        once(socket, 'connect').then(() => true),
        once(socket, 'error').then(() => false),
      ]).catch(() => false)
      socket.destroy()
      return !connected
    }
  })

  test('a configuration that is wrong is told whole, and ends with 2', async () => {
    const wrong = {
      ...env,
      TOLLWARD_UPSTREAM_URL: 'ftp://x',
      TOLLWARD_TRUSTED_PROXIES: '10.0.0.1/8',
      TOLLWARD_NO_SUCH: '1',
    }
    await assert.rejects(
      startService('gateway', { ...wrong, TOLLWARD_HEALTH_PORT: String(await freePort()) }),
      (error: Error) => {
        for (const variable of ['TOLLWARD_UPSTREAM_URL', 'TOLLWARD_TRUSTED_PROXIES', 'TOLLWARD_NO_SUCH'])
          assert.match(error.message, new RegExp(variable))
        return true
      },
    )
  })
})
