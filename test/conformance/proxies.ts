import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { request as httpsRequest } from 'node:https'
import process from 'node:process'
import { after, before, test } from 'node:test'
import { eventually, freePort } from '@tollward/testkit'
import { makeAuthority } from '../scenario/certificates.ts'
import {
  ANSWER_TIMEOUT_MS,
  type Ask,
  ask,
  askRaw,
  comparable,
  type ProxyUnderTest,
  type Stack,
  startStack,
  tlsFiles,
} from './proxy-stack.ts'

/** Declares the tests that every proxy that asks over HTTP must pass, with the gateway beside it. */
export function proxyTests(under: ProxyUnderTest): void {
  let stack: Stack
  before(async () => {
    stack = await startStack(under)
  })
  after(() => stack?.resources.disposeAsync())

  const throughProxy = (asked: Ask) => ask(stack.proxyPort, asked)
  const throughGateway = (asked: Ask) => ask(stack.gatewayPort, asked)

  /** Asks on both ways; the answers must not differ. */
  async function same(asked: Ask, status: number): Promise<void> {
    const [proxied, gatewayed] = [await throughProxy(asked), await throughGateway(asked)]
    const what = `${asked.method ?? 'GET'} ${asked.path ?? '/public'}`
    assert.deepEqual(comparable(proxied), comparable(gatewayed), what)
    assert.equal(proxied.status, status, what)
    assert.match(String(proxied.headers['x-tollward-decision']), /^[0-9a-f-]{36}$/, what)
    const isProblem = proxied.headers['content-type'] === 'application/problem+json' && proxied.body !== ''
    if (isProblem) assert.equal(JSON.parse(proxied.body).decision, proxied.headers['x-tollward-decision'], what)
  }

  test('the walk from public over 401, 402 and 403 to 200 is the same as through the gateway', async () => {
    const { neighbours } = stack
    await same({ path: '/public' }, 200)
    await same({ path: '/public', method: 'HEAD' }, 200)
    await same({ path: '/orders' }, 401)
    await same({ path: '/orders', method: 'HEAD' }, 401)
    await same({ path: '/orders', token: 'nonsense' }, 401)
    await same({ path: '/nowhere' }, 401)
    const token = neighbours.issue('walker', ['orders'])
    await same({ path: '/nowhere', token }, 403)
    await same({ path: '/internal/x', token }, 403)
    await same({ path: '/orders', token: neighbours.issue('walker', []) }, 403)
    await same({ path: '/orders', token }, 402)
    await same({ path: '/orders', token, headers: { 'x-bitcoin-txid': 'ab'.repeat(32) } }, 403)
    await same({ path: '/orders', token, headers: { 'x-bitcoin-txid': 'short' } }, 400)
    const body = '{"item":"tea"}'
    const headers = { 'content-type': 'application/json' }
    await same({ path: '/orders', token, method: 'POST', body, headers }, 402)
    await neighbours.activatePass('walker', 'orders', 1000)
    for (const through of [throughProxy, throughGateway]) {
      await eventually(async () => (await through({ path: '/orders', token })).status === 200, {
        what: 'the pass admits',
      })
    }
    await same({ path: '/orders', token }, 200)
    const [proxied, gatewayed] = [throughProxy, throughGateway].map((through) =>
      through({ path: '/orders', token, method: 'POST', body, headers }),
    )
    assert.deepEqual([(await proxied)?.status, (await gatewayed)?.status], [201, 201])
  })

  test('a refusal for being too often says how long to wait, as through the gateway', async () => {
    const token = stack.neighbours.issue('hasty-client', ['orders'])
    // Each has a limit of its own to use up.
    for (const through of [throughProxy, throughGateway]) await through({ path: '/limited', token })
    await same({ path: '/limited', token }, 429)
  })

  test("the API's own refusals and errors come as they are", async () => {
    for (const status of [401, 403, 404, 500, 503]) await same({ path: `/status/${status}` }, status)
  })

  test('whatever a client says of itself or of the request does not arrive, and what the token says does', async () => {
    const token = stack.neighbours.issue('echo-client', ['orders'])
    const spoofed = {
      'x-tollward-client': 'admin',
      'X-Tollward-Subject': ['root', 'admin'],
      'x-tollward-pass': 'free',
      'x-tollward-decision': 'mine',
      'x-bitcoin-txid': 'ab'.repeat(32),
      dpop: 'proof',
      'x-forwarded-for': '203.0.113.66',
      'x-forwarded-host': 'evil.example',
      'x-forwarded-proto': 'gopher',
      'x-forwarded-method': 'TRACE',
      'x-forwarded-uri': '/public',
      'x-forwarded-prefix': '/evil',
      'x-forwarded-port': '666',
      forwarded: 'for=203.0.113.66;host=evil.example',
      'x-original-url': '/internal',
      'x-original-uri': '/internal',
      'x-rewrite-url': '/internal',
      'x-http-method': 'DELETE',
      'x-http-method-override': 'DELETE',
      'x-method-override': 'DELETE',
      'x-real-ip': '203.0.113.66',
      'x-client-certificate': ':QQ==:',
    }
    const seen = await throughProxy({ path: '/echo?x=1', token, headers: spoofed })
    assert.equal(seen.status, 200, seen.body)
    const { url, headers } = JSON.parse(seen.body)
    assert.equal(url, '/echo?x=1')
    const interesting =
      /tollward|bitcoin|authorization|forwarded|original|rewrite|override|x-http|real-ip|certificate|dpop|host/
    const own = under.sets ?? []
    const arrived = Object.entries(headers).filter(([name]) => interesting.test(name) && !own.includes(name))
    for (const name of own) {
      assert.ok(headers[name], name)
      assert.doesNotMatch(headers[name], /203\.0\.113\.66|evil|666/, name)
    }
    const { 'x-tollward-decision': decision, ...rest } = Object.fromEntries(arrived)
    assert.equal(decision, seen.headers['x-tollward-decision'])
    assert.deepEqual(rest, {
      host: 'api.example',
      authorization: 'Bearer internal.echo-client.jwt',
      'x-tollward-client': 'echo-client',
      'x-tollward-subject': 'echo-client',
      'x-tollward-scopes': 'orders',
      'x-forwarded-for': '127.0.0.1',
      'x-forwarded-host': 'api.example',
      'x-forwarded-proto': 'http',
    })
  })

  test('a header that some servers would read as ours is refused or does not arrive', async () => {
    const token = stack.neighbours.issue('under-client', ['orders'])
    for (const name of [
      'x_tollward_client',
      'X-Tollward_Pass',
      'x-tollward-future',
      'x_bitcoin_txid',
      'x_forwarded_for',
      'X_Real-Ip',
      'x-tollward-path',
    ]) {
      const { status, body } = await throughProxy({ path: '/echo', token, headers: { [name]: 'admin' } })
      if (status === 400) continue
      assert.equal(status, 200, name)
      assert.ok(!Object.values(JSON.parse(body).headers).includes('admin'), name)
    }
  })

  test('Connection takes none of our headers away', async () => {
    const token = stack.neighbours.issue('nominating-client', ['orders'])
    for (const name of ['x-tollward-client', 'Authorization', 'X-Tollward-Scopes, keep-alive']) {
      const headers = { connection: `close, ${name}` }
      const { status, body } = await throughProxy({ path: '/echo', token, headers })
      if (status !== 200) {
        assert.ok(status === 400 || status === 401, `${name}: ${status}`)
        continue
      }
      const { authorization, 'x-tollward-client': client, 'x-tollward-scopes': scopes } = JSON.parse(body).headers
      assert.deepEqual(
        [authorization, client, scopes],
        ['Bearer internal.nominating-client.jwt', 'nominating-client', 'orders'],
        name,
      )
    }
  })

  test('what a rule rewrites is rewritten as through the gateway, or the request is refused', async () => {
    const headers = { 'x-debug': '1', 'x-tenant': 'mine' }
    for (const [part, path, url] of [
      ['path', '/moved?x=1&b=%2f', '/echo?x=1&b=%2f'],
      ['query', '/query?x=1&secret=2', '/echo?x=1&from=rule'],
      ['headers', '/headers', '/echo'],
    ] as const) {
      stack.arrived.length = 0
      const proxied = await throughProxy({ path, headers })
      if (part !== 'path' && !under.applies.includes(part)) {
        assert.deepEqual([proxied.status, stack.arrived], [503, []], part)
        continue
      }
      assert.equal(proxied.status, 200, part)
      const [seen, wanted] = [JSON.parse(proxied.body), JSON.parse((await throughGateway({ path, headers })).body)]
      assert.deepEqual([seen.url, wanted.url], [url, url])
      const rule = ['x-tenant', 'x-debug']
      assert.deepEqual(
        rule.map((name) => seen.headers[name]),
        rule.map((name) => wanted.headers[name]),
      )
      if (part === 'headers') assert.deepEqual([seen.headers['x-tenant'], proxied.headers['x-plan']], ['gold', 'gold'])
    }
  })

  test('a client certificate counts where a proxy sends it, and not where a client does', async () => {
    const der = Buffer.from('the DER of a certificate')
    const confirmation = { method: { case: 'x5tS256', value: hash('sha256', der, 'base64url') } } as const
    const token = stack.neighbours.issue('mtls-client', ['orders'], { confirmation })
    const headers = { 'x-client-certificate': `:${der.toString('base64')}:` }
    assert.equal((await throughProxy({ path: '/echo', token, headers })).status, 401)
    const question = { 'x-forwarded-method': 'GET', 'x-forwarded-uri': '/echo', 'x-forwarded-for': '192.0.2.1' }
    const asked = {
      path: '/forward-auth',
      token,
      headers: { ...headers, ...question, 'x-forwarded-host': 'api.example' },
    }
    assert.equal((await ask(stack.authorizerPort, asked)).status, 200)
  })

  test('a token that is bound to a client certificate counts on a connection with that, and on no other', async () => {
    const { neighbours, apiPort, authorizerPort } = stack
    await using resources = new AsyncDisposableStack()
    const authority = await makeAuthority()
    const proxyPort = await freePort()
    const tls = await tlsFiles(authority, resources)
    const { lines } = await under.start({ proxyPort, apiPort, authorizerPort, tls }, resources)
    const [own, other] = [await authority.issue('CN=own', 'client'), await authority.issue('CN=other', 'client')]
    const der = Buffer.from(own.der, 'base64')
    const confirmation = { method: { case: 'x5tS256', value: hash('sha256', der, 'base64url') } } as const
    const token = neighbours.issue('tls-client', ['orders'], { confirmation })
    const status = async (client: { cert?: string; key?: string }) => {
      const sent = httpsRequest({
        ...{ host: '127.0.0.1', port: proxyPort, path: '/echo', agent: false, servername: 'api.example' },
        ...{ ca: authority.cert, ...client },
        headers: { host: 'api.example', authorization: `Bearer ${token}`, 'x-client-certificate': `:${own.der}:` },
        signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS),
      }).end()
      const [response] = (await once(sent, 'response')) as [IncomingMessage]
      let body = ''
      for await (const chunk of response) body += chunk
      return { status: response.statusCode, body }
    }
    const what = `the proxy speaks TLS`
    await eventually(async () => (await status({})).status === 401, { what }).catch((cause) => {
      throw new Error(`no ${what}:\n${lines.join('\n')}`, { cause })
    })
    assert.equal((await status({ cert: other.cert, key: other.key })).status, 401)
    const admitted = await status({ cert: own.cert, key: own.key })
    assert.equal(admitted.status, 200, admitted.body)
    const { headers } = JSON.parse(admitted.body)
    assert.deepEqual([headers['x-forwarded-proto'], headers['x-client-certificate']], ['https', undefined])
  })

  test('every request is decided about once, those that are refused too', async () => {
    const asked = async () => {
      const metrics = await (await fetch(`${stack.authorizer.healthUrl}/metrics`)).text()
      return Number(/^tollward_authorizer_requests_total\{protocol="http"\} (\d+)$/m.exec(metrics)?.[1])
    }
    const before = await asked()
    for (const path of ['/public', '/orders', '/internal', '//']) await throughProxy({ path })
    assert.equal(await asked(), before + 4)
  })

  test('a client without a token is nobody to the API', async () => {
    const headers = { 'x-tollward-client': 'admin', authorization: 'Basic eA==' }
    await same({ path: '/public', headers }, 200)
    const { headers: seen } = JSON.parse((await throughProxy({ path: '/moved', headers })).body)
    assert.equal(seen['x-tollward-client'], undefined)
    const asked = await throughProxy({ path: '/echo', headers: { 'x-tollward-client': 'admin' } })
    assert.equal(asked.status, 401)
  })

  test('a credential that is sent twice is refused', async () => {
    const token = stack.neighbours.issue('double-client', ['orders'])
    for (const authorization of [[`Bearer ${token}`, 'Bearer other'], `Bearer ${token}, Bearer other`]) {
      const { status } = await throughProxy({ path: '/echo', headers: { authorization } })
      assert.equal(status, 400)
    }
  })

  test('an odd path is refused, or gets to the API only in the spelling that was decided about', async () => {
    const token = stack.neighbours.issue('path-client', ['orders'])
    const odd = [
      ...[
        '//echo',
        '/echo//',
        '/public/../echo',
        '/public/..;/echo',
        '/public%2fecho',
        '/public%5cecho',
        '/public\\echo',
      ],
      ...[
        '/public%00',
        '/echo;x=1',
        '/echo%',
        '/echo%zz',
        '/%c0%afecho',
        '/./echo',
        '/echo/.',
        '/echo%2f..%2finternal',
      ],
      ...[
        '/echo/../internal',
        '/echo/..;/internal',
        '/public/%2e%2e/internal',
        '/echo/%2e%2e/internal',
        '/ECHO',
        '/internal',
      ],
      ...['/%69nternal', '/internal%20', '/echo%3fx=1/../internal', '/echo%23/../../internal', '/public%3b/../echo'],
    ]
    for (const path of odd) {
      stack.arrived.length = 0
      const { status } = await askRaw(
        stack.proxyPort,
        `GET ${path} HTTP/1.1\r\nHost: api.example\r\nAuthorization: Bearer ${token}\r\nConnection: close\r\n\r\n`,
      )
      if (status === 200)
        assert.ok(
          stack.arrived.every((seen) => seen === 'GET /echo' || seen === 'GET /public'),
          path,
        )
      else {
        assert.ok([400, 403, 404].includes(status), `${path}: ${status}`)
        assert.deepEqual(stack.arrived, [], `${path} got to the API`)
      }
    }
    for (const path of ['/%65cho', '/ech%6F?a=%2f..%2f&b=;']) {
      const { status, body } = await throughProxy({ path, token })
      assert.deepEqual(
        [status, JSON.parse(body).url],
        [200, `/echo${path.includes('?') ? `?a=%2f..%2f&b=${under.semicolon ?? ';'}` : ''}`],
        path,
      )
    }
  })

  test('two hosts, no host or another host in the request line do not get past the decision', async () => {
    for (const lines of [
      ['GET /internal HTTP/1.1', 'Host: api.example', 'Host: evil.example'],
      ['GET /internal HTTP/1.1'],
      ['GET /internal HTTP/1.0'],
      ['GET http://evil.example/internal HTTP/1.1', 'Host: api.example'],
      ['GET /internal HTTP/1.1', 'Host: api.example', 'X-Forwarded-Uri: /public', 'X-Forwarded-Uri: /public'],
      ['PUBLIC /internal HTTP/1.1', 'Host: api.example', 'X-HTTP-Method-Override: GET'],
    ]) {
      stack.arrived.length = 0
      const { status } = await askRaw(stack.proxyPort, [...lines, 'Connection: close', '', ''].join('\r\n'))
      assert.ok([400, 401, 403, 405].includes(status), `${lines}: ${status}`)
      assert.deepEqual(stack.arrived, [], String(lines))
    }
  })

  test('a blocked source is refused, whatever it says of its address, and another one is not', async () => {
    await stack.neighbours.block('127.0.0.77')
    for (const through of [throughProxy, throughGateway]) {
      await eventually(async () => (await through({ from: '127.0.0.77' })).status === 403, { what: 'it is blocked' })
    }
    await same({ from: '127.0.0.77' }, 403)
    await same({ from: '127.0.0.78' }, 200)
    for (const name of ['x-forwarded-for', 'x-real-ip', 'forwarded']) {
      await same({ from: '127.0.0.77', headers: { [name]: name === 'forwarded' ? 'for=127.0.0.1' : '127.0.0.1' } }, 403)
    }
  })

  const { startBehindBalancer } = under
  const balanced = async (start: ProxyUnderTest['start']) => {
    const { neighbours, apiPort, authorizerPort } = stack
    await using resources = new AsyncDisposableStack()
    const proxyPort = await freePort()
    await start({ proxyPort, apiPort, authorizerPort }, resources)
    await neighbours.block('203.0.113.66')
    const statusOf = async (source: string) => (await ask(proxyPort, { headers: { 'x-forwarded-for': source } })).status
    await eventually(async () => (await statusOf('203.0.113.66')) === 403, { what: 'the source is refused' })
    assert.equal(await statusOf('203.0.113.67'), 200)
    assert.equal(await statusOf('203.0.113.66, 203.0.113.67'), 200, 'what the source says of itself does not count')
  }
  if (startBehindBalancer)
    test('behind a load balancer that it trusts, the source is whom that names', () => balanced(startBehindBalancer))

  test('a body of megabytes goes through whole, and a refused one gets its refusal', async () => {
    const body = Buffer.alloc(4 * 1024 * 1024, 'x')
    const headers = { 'content-type': 'application/octet-stream', 'content-length': String(body.length) }
    const answer = await throughProxy({ path: '/uploads', method: 'POST', body, headers })
    assert.deepEqual([answer.status, answer.body], [200, `{"bytes":${body.length}}`])
    const chunked = await throughProxy({
      ...{ path: '/uploads', method: 'POST', body: body.subarray(0, 100_000) },
      headers: { 'content-type': 'application/octet-stream', 'transfer-encoding': 'chunked' },
    })
    assert.equal(chunked.body, '{"bytes":100000}')
    await same({ path: '/orders', method: 'POST', body: 'x'.repeat(10_000) }, 401)
  })

  test('an answer that comes in parts is passed on in parts, also one to which a rule adds headers', async () => {
    const added = under.applies.includes('headers') ? [['/told', 'gold']] : []
    for (const [path, plan] of [['/stream', 'free'], ...added]) {
      const sent = httpRequest({ host: '127.0.0.1', port: stack.proxyPort, path, agent: false })
      sent.setHeader('host', 'api.example').end()
      const [response] = (await once(sent, 'response', { signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS) })) as [
        IncomingMessage,
      ]
      let text = ''
      response.setEncoding('utf8').on('data', (chunk) => {
        text += chunk
      })
      await eventually(() => text.includes('first'), { what: `the beginning of ${path} arrives without the end` })
      assert.equal(response.headers['x-plan'], plan)
      response.destroy()
    }
  })

  test('a WebSocket goes through to the API with its caller, and without a token does not', async () => {
    const token = stack.neighbours.issue('socket-client', ['orders'])
    const headers = { host: 'api.example', connection: 'Upgrade', upgrade: 'websocket', 'sec-websocket-version': '13' }
    const open = (more: Record<string, string>) =>
      httpRequest({
        ...{ host: '127.0.0.1', port: stack.proxyPort, path: '/socket', agent: false },
        headers: { ...headers, 'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==', ...more },
        signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS),
      }).end()
    const opening = open({ authorization: `Bearer ${token}` })
    opening.on('response', ({ statusCode }) => opening.destroy(new Error(`no WebSocket, but ${statusCode}`)))
    const [response, socket] = await once(opening, 'upgrade')
    assert.equal(response.headers['x-seen-client'], 'socket-client')
    socket.write('hello')
    const [echoed] = await once(socket, 'data')
    assert.equal(String(echoed), 'hello')
    socket.destroy()
    const [refused] = (await once(open({}), 'response')) as [IncomingMessage]
    assert.equal(refused.statusCode, 401)
    refused.resume()
  })

  test('while the authorizer hangs or is gone everything is refused with 503, and served again when it is back', async () => {
    const { authorizer, neighbours, arrived } = stack
    const token = neighbours.issue('lonely-client', ['orders'])
    assert.equal((await throughProxy({ path: '/echo', token })).status, 200)
    const refusesAll = async (paths: readonly string[]) => {
      arrived.length = 0
      for (const answer of await Promise.all(paths.map((path) => throughProxy({ path, token })))) {
        assert.equal(answer.status, 503)
        assert.equal(answer.headers['content-type'], 'application/problem+json')
        assert.equal(JSON.parse(answer.body).type, 'https://tollward.dev/problems/unavailable')
        assert.ok(answer.headers['retry-after'])
      }
      assert.deepEqual(arrived, [])
    }
    process.kill(authorizer.pid, 'SIGSTOP')
    try {
      await refusesAll(['/public', '/echo', '/nowhere'])
    } finally {
      process.kill(authorizer.pid, 'SIGCONT')
    }
    await eventually(async () => (await throughProxy({ path: '/echo', token })).status === 200, {
      what: 'it is asked again',
    })
    await authorizer.kill()
    await refusesAll(['/public', '/echo', '/orders', '/nowhere'])
    await authorizer.start()
    await eventually(async () => (await throughProxy({ path: '/echo', token })).status === 200, { what: 'it is back' })
  })
}
