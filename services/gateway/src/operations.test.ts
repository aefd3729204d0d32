import assert from 'node:assert/strict'
import { once } from 'node:events'
import { copyFileSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { Agent, request as httpRequest, type IncomingMessage, type ServerResponse } from 'node:http'
import { connect } from 'node:net'
import { after, before, describe, test } from 'node:test'
import { connect as connectTls } from 'node:tls'
import { eventually, requires } from '@tollward/testkit'
import {
  askHttp2,
  connectHttp2,
  DOCUMENTS,
  makeCertificate,
  startTestGateway,
  type TestGateway,
  textOf,
} from './test-gateway.ts'

const skip = await requires({ tools: ['nats-server', 'openssl'] })
/** What waits for an end that does not come fails, rather than wait for ever. */
const TEST_TIMEOUT_MS = 20_000
const PER_SOURCE_MAX = 20
const BODY_DECISION_BYTES_MAX = 1000

const MORE_DOCUMENTS = `
---
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: mesh }
spec:
  hosts: [mesh.example]
  rules:
    - { name: web, match: { prefix: /, principals: ["spiffe://example.org/ns/shop/*"] }, anonymous: true }
---
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: rpc }
spec:
  hosts: [rpc.example]
  rules:
    - { name: list, match: { path: /rpc, rpcMethods: [tools/list] }, anonymous: true }
    - { name: rest, match: { prefix: /plain }, anonymous: true }
---
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: rewriting }
spec:
  hosts: [rewriting.example]
  rules:
    - name: item
      match: { path: "/shop/{id}" }
      anonymous: true
      rewrite:
        path: "/v2/items/{id}"
        query: { set: { source: shop }, remove: [debug] }
        headers: { set: { x-added: here }, remove: [x-removed] }
        responseHeaders: { set: { x-served-by: shop } }
`

describe('gateway, operations', { skip }, () => {
  let resources: AsyncDisposableStack
  let gateway: TestGateway
  let logFile: string
  let api: (request: IncomingMessage, response: ServerResponse) => void = () => {}

  const echo = (request: IncomingMessage, response: ServerResponse) => {
    void textOf(request).then((body) => {
      response.setHeader('x-served-by', 'api')
      response.end(JSON.stringify({ url: request.url, headers: request.headers, body }))
    })
  }

  before(async () => {
    resources = new AsyncDisposableStack()
    const stack = resources.use(new AsyncDisposableStack())
    gateway = await startTestGateway(stack, (request, response) => api(request, response), {
      documents: DOCUMENTS + MORE_DOCUMENTS,
      env: { TOLLWARD_CONNECTIONS_PER_SOURCE_MAX: String(PER_SOURCE_MAX) },
    })
    logFile = `${gateway.directory}/access.log`
  })
  after(() => resources.disposeAsync())

  async function ask(
    port: number,
    { host = 'open.example', path = '/', method = 'GET', headers = {}, body = '', from = '127.0.0.1' } = {},
    agent: Agent | false = false,
  ): Promise<{ status: number; headers: IncomingMessage['headers']; body: string }> {
    const fields = { host, ...headers }
    const sent = httpRequest({ host: '127.0.0.1', port, path, method, agent, headers: fields, localAddress: from })
    sent.end(body)
    const [response] = (await once(sent, 'response')) as [IncomingMessage]
    return { status: response.statusCode ?? 0, headers: response.headers, body: await textOf(response) }
  }

  /** Lines of the log once there are so many. */
  function lines(count: number, file = logFile): Promise<string[]> {
    const read = () => {
      const found = readFileSync(file, 'utf8').split('\n')
      return found.length > count ? found.slice(0, -1) : undefined
    }
    return eventually(read, { what: `${count} lines in the access log` })
  }

  test('the access log has each request in the Common Log Format, and no client can forge a line or find a secret in it', async () => {
    api = echo
    await using own = new AsyncDisposableStack()
    const { service, httpPort } = await gateway.another({
      TOLLWARD_ACCESS_LOG: 'combined',
      TOLLWARD_ACCESS_LOG_FILE: logFile,
    })
    own.use(service)
    const token = gateway.neighbours.issue('logged', ['orders'])
    const secrets = { authorization: `Bearer ${token}`, cookie: 'session=secret-cookie' }
    await ask(httpPort, { host: 'closed.example', path: '/a?key=secret-query', headers: secrets })
    const forging = 'x" 200 1 "-" "y\\'
    await ask(httpPort, { headers: { 'user-agent': `${forging}\tb\u00e9`, referer: 'http://a/b?secret-referer' } })
    await ask(httpPort, { host: 'closed.example', headers: { 'x-bitcoin-txid': 'ab'.repeat(32) } })
    const [first = '', second = '', third = ''] = await lines(3)
    const time = String.raw`\[\d{2}/[A-Z][a-z]{2}/\d{4}:\d{2}:\d{2}:\d{2} \+0000\]`
    assert.match(first, new RegExp(`^127\\.0\\.0\\.1 - logged ${time} "GET /a HTTP/1\\.1" 200 \\d+ "-" "-"$`))
    assert.match(second, /" 200 \d+ "http:\/\/a\/b" "x\\x22 200 1 \\x22-\\x22 \\x22y\\x5c\\x09b\\xc3\\xa9"$/)
    assert.match(third, /^127\.0\.0\.1 - - .* "GET \/ HTTP\/1\.1" 401 \d+ "-" "-"$/)
    assert.doesNotMatch(`${first}${second}${third}`, new RegExp(`secret|${token}|abab`))

    renameSync(logFile, `${logFile}.1`)
    process.kill(service.pid, 'SIGHUP')
    await service.line(/access log reopened/)
    await ask(httpPort)
    assert.match((await lines(1))[0] ?? '', /"GET \/ HTTP\/1\.1" 200/)
  })

  test('the access log as JSON tells decision, rule, client, times and bytes', async () => {
    api = echo
    await using own = new AsyncDisposableStack()
    const file = `${gateway.directory}/access.json`
    const { service, httpPort, httpsPort } = await gateway.another({
      TOLLWARD_ACCESS_LOG: 'json',
      TOLLWARD_ACCESS_LOG_FILE: file,
    })
    own.use(service)
    const token = gateway.neighbours.issue('logged', ['orders'])
    const session = await connectHttp2(own, httpsPort)
    const asked = { ':path': '/a?secret', ':method': 'POST', ':authority': 'closed.example' }
    const served = await askHttp2(session, { ...asked, authorization: `Bearer ${token}` }, 'body')
    const refused = await ask(httpPort, { host: 'closed.example', path: '/b' })
    const [first, second] = (await lines(2, file)).map((line) => JSON.parse(line))
    const { durationMs, decisionMs, upstreamMs, at, ...told } = first
    assert.ok(durationMs >= upstreamMs && decisionMs >= 0 && Math.abs(Date.parse(at) - Date.now()) < 60_000)
    assert.deepEqual(told, {
      address: '127.0.0.1',
      method: 'POST',
      path: '/a',
      version: '2.0',
      host: 'closed.example',
      referer: '',
      userAgent: '',
      status: 200,
      bytesSent: served.body.length,
      bytesReceived: 4,
      decision: served.headers['x-tollward-decision'],
      reason: '',
      rule: 'closed/all',
      client: 'logged',
      subject: 'logged',
      complete: true,
    })
    assert.deepEqual([second.status, second.reason], [401, 'token-missing'])
    assert.equal(second.decision, refused.headers['x-tollward-decision'])
  })

  test('an orderly restart of one of two gateways loses no request of a client that tries the other', {
    timeout: TEST_TIMEOUT_MS,
  }, async () => {
    let served = 0
    api = (_request, response) => {
      served += 1
      setTimeout(() => response.end('whole'), 5)
    }
    const second = await gateway.another({ TOLLWARD_CONNECTIONS_PER_SOURCE_MAX: '1000' })
    const third = await gateway.another({ TOLLWARD_CONNECTIONS_PER_SOURCE_MAX: '1000' })
    const ports = [second.httpPort, third.httpPort]
    const agent = new Agent({ keepAlive: true, maxSockets: 16 })
    let going = true
    let answered = 0
    let retried = 0
    const broken: string[] = []
    const client = async (first: number) => {
      for (let count = first; going; count++) {
        for (let attempt = 0; ; attempt++) {
          // An answer that has begun must be whole; a connection that ends before one is tried again elsewhere.
          const sent = httpRequest({
            host: '127.0.0.1',
            port: ports[(count + attempt) % 2],
            agent,
            headers: { host: 'open.example' },
          })
          sent.end()
          const response = await once(sent, 'response').then(
            ([got]) => got as IncomingMessage,
            (error: NodeJS.ErrnoException) => {
              if (error.code !== 'ECONNREFUSED') retried += 1
            },
          )
          if (!response) {
            if (attempt > 3) broken.push('no gateway answers')
            if (attempt > 3) break
            continue
          }
          const body = await textOf(response).catch((error: Error) => error.message)
          if (response.statusCode !== 200 || body !== 'whole') broken.push(`${response.statusCode} ${body}`)
          answered += 1
          break
        }
      }
    }
    const clients = Array.from({ length: 8 }, (_, index) => client(index))
    await eventually(() => answered > 200, { what: 'load runs' })
    for (const { service } of [second, third]) {
      const before = answered
      assert.equal(await service.stop(), 0)
      await eventually(() => answered > before + 100, { what: 'the other one serves' })
      await service.start()
    }
    going = false
    await Promise.all(clients)
    agent.destroy()
    assert.deepEqual(broken, [])
    assert.ok(served >= answered && retried <= 64, `${served} served, ${answered} answered, ${retried} tried again`)
  })

  test('while it drains, a gateway says so on every connection, and HTTP/2 streams under way are finished', {
    timeout: TEST_TIMEOUT_MS,
  }, async () => {
    const held: ServerResponse[] = []
    api = (_request, response) => void held.push(response)
    const { service, httpPort, httpsPort } = await gateway.another()
    await using own = new AsyncDisposableStack()
    const session = await connectHttp2(own, httpsPort)
    const overHttp2 = askHttp2(session, { ':path': '/', ':authority': 'open.example' })
    const agent = new Agent({ keepAlive: true })
    const overHttp1 = ask(httpPort, {}, agent)
    await eventually(() => held.length === 2, { what: 'both requests arrive' })
    const goaway = once(session, 'goaway')
    const stopped = service.stop()
    await goaway
    assert.equal((await fetch(`${service.healthUrl}/healthz/ready`)).status, 503)
    for (const response of held) response.end('finished')
    assert.equal((await overHttp2).body, 'finished')
    const { body, headers } = await overHttp1
    assert.deepEqual([body, headers.connection], ['finished', 'close'])
    assert.equal(await stopped, 0)
    agent.destroy()
  })

  test('a renewed certificate is taken without touching connections, and one that is no good is not', async () => {
    api = echo
    const own = makeCertificate(gateway.directory, 'renewed')
    const { service, httpsPort } = await gateway.another({
      TOLLWARD_TLS_CERT_FILE: own.certFile,
      TOLLWARD_TLS_KEY_FILE: own.keyFile,
    })
    const fingerprint = async () => {
      const socket = connectTls({ port: httpsPort, rejectUnauthorized: false })
      await once(socket, 'secureConnect')
      const { fingerprint256 } = socket.getPeerCertificate()
      socket.destroy()
      return fingerprint256
    }
    await using stack = new AsyncDisposableStack()
    const session = await connectHttp2(stack, httpsPort)
    const first = await fingerprint()
    const good = readFileSync(own.certFile, 'utf8')
    writeFileSync(own.certFile, 'no certificate')
    process.kill(service.pid, 'SIGHUP')
    await service.line(/certificate not renewed/)
    assert.equal(await fingerprint(), first)
    writeFileSync(own.certFile, good)
    const fresh = makeCertificate(gateway.directory, 'fresh')
    copyFileSync(fresh.keyFile, own.keyFile)
    copyFileSync(fresh.certFile, own.certFile)
    process.kill(service.pid, 'SIGHUP')
    await service.line(/certificate renewed/)
    assert.notEqual(await fingerprint(), first)
    assert.equal((await askHttp2(session, { ':path': '/', ':authority': 'open.example' })).status, 200)
  })

  test('one source has so many connections and no more, and another one is served', async () => {
    api = echo
    using stack = new DisposableStack()
    const sockets = Array.from({ length: PER_SOURCE_MAX }, () => {
      const socket = connect({ port: gateway.httpPort, host: '127.0.0.1', localAddress: '127.0.0.40' })
      stack.defer(() => socket.destroy())
      return socket
    })
    await Promise.all(sockets.map((socket) => once(socket, 'connect')))
    await assert.rejects(ask(gateway.httpPort, { from: '127.0.0.40' }))
    assert.equal((await ask(gateway.httpPort, { from: '127.0.0.41' })).status, 200)
    sockets[0]?.destroy()
    const again = () =>
      ask(gateway.httpPort, { from: '127.0.0.40' }).then(
        ({ status }) => status === 200,
        () => false,
      )
    await eventually(again, { what: 'a connection is free' })
    assert.ok((await gateway.metric('tollward_gateway_connections_refused_total', 'reason="source"')) >= 1)
  })

  test('who a client is counts only if a configured authority vouches for it', async () => {
    api = echo
    const { directory } = gateway
    const ca = makeCertificate(directory, 'ca', { extensions: ['basicConstraints=critical,CA:TRUE'] })
    const extensions = [
      'basicConstraints=critical,CA:FALSE',
      'subjectAltName=DNS:web,URI:spiffe://example.org/ns/shop/sa/web',
    ]
    const vouched = makeCertificate(directory, 'vouched', { issuer: 'ca', extensions })
    const claimed = makeCertificate(directory, 'claimed', { extensions })
    const { httpsPort } = await gateway.another({ TOLLWARD_TLS_CLIENT_CA_FILE: ca.certFile })
    await using stack = new AsyncDisposableStack()
    const status = async (port: number, files?: { certFile: string; keyFile: string }) => {
      const proof = files && { cert: readFileSync(files.certFile), key: readFileSync(files.keyFile) }
      const session = await connectHttp2(stack, port, proof)
      return (await askHttp2(session, { ':path': '/', ':authority': 'mesh.example' })).status
    }
    assert.equal(await status(httpsPort, vouched), 200)
    assert.equal(await status(httpsPort, claimed), 401)
    assert.equal(await status(httpsPort), 401)
    assert.equal(await status(gateway.httpsPort, vouched), 401)
  })

  test('a rule that looks into bodies gets them whole, or knows that they are not, and the API gets them unchanged', {
    timeout: TEST_TIMEOUT_MS,
  }, async () => {
    api = echo
    const { httpPort, httpsPort } = await gateway.another({
      TOLLWARD_BODY_DECISION_BYTES_MAX: String(BODY_DECISION_BYTES_MAX),
    })
    const headers = { 'content-type': 'application/json' }
    const call = (method: string, padding = 0) =>
      JSON.stringify({ jsonrpc: '2.0', id: 1, method, params: { padding: 'x'.repeat(padding) } })
    const post = (body: string, path = '/rpc') =>
      ask(httpPort, { host: 'rpc.example', path, method: 'POST', headers, body })
    const served = await post(call('tools/list', 500))
    assert.deepEqual([served.status, JSON.parse(served.body).body], [200, call('tools/list', 500)])
    assert.equal((await post(call('resources/list'))).status, 401)
    assert.ok((await post(call('tools/list', BODY_DECISION_BYTES_MAX))).status >= 400)
    const large = 'y'.repeat(BODY_DECISION_BYTES_MAX * 100)
    assert.equal(JSON.parse((await post(large, '/plain')).body).body, large)
    await using stack = new AsyncDisposableStack()
    const session = await connectHttp2(stack, httpsPort)
    const asked = { ':path': '/rpc', ':method': 'POST', ':authority': 'rpc.example', ...headers }
    const answer = await askHttp2(session, asked, call('tools/list'))
    assert.deepEqual([answer.status, JSON.parse(answer.body).body], [200, call('tools/list')])
  })

  test('what a rule rewrites is what the API and the client get', async () => {
    api = echo
    const { body, headers } = await ask(gateway.httpPort, {
      host: 'rewriting.example',
      path: '/shop/7?a=1&debug=1',
      headers: { 'x-removed': 'gone', 'x-added': 'forged' },
    })
    const arrived = JSON.parse(body)
    assert.equal(arrived.url, '/v2/items/7?a=1&source=shop')
    assert.deepEqual([arrived.headers['x-added'], arrived.headers['x-removed']], ['here', undefined])
    assert.equal(headers['x-served-by'], 'shop')
  })
})
