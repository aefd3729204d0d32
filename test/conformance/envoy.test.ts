import assert from 'node:assert/strict'
import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { after, before, describe, test } from 'node:test'
import { EXAMPLE_DOCUMENTS, type Neighbours, startNeighbours } from '@tollward/decision/testing'
import { createApi } from '@tollward/example-api'
import { eventually, freePort, requires, type Service, startService } from '@tollward/testkit'
import { plainPlaces, startShippedEnvoy } from './envoy-stack.ts'

const skip = await requires({ tools: ['nats-server', 'envoy'] })

interface Ask {
  path?: string
  method?: string
  token?: string
  from?: string
  headers?: Record<string, string | string[]>
  body?: string
}

interface Answer {
  status: number
  headers: IncomingMessage['headers']
  body: string
}

describe('the same API behind a real Envoy and behind the gateway', { skip }, () => {
  let neighbours: Neighbours
  let authorizer: Service
  let resources: AsyncDisposableStack
  let throughEnvoy: number
  let throughGateway: number

  before(async () => {
    resources = new AsyncDisposableStack()
    neighbours = resources.use(await startNeighbours())
    await neighbours.apply(EXAMPLE_DOCUMENTS)
    const api = createApi()
    const apiPort = Number(new URL(await api.listen({ host: '127.0.0.1', port: 0 })).port)
    resources.defer(() => api.close())
    const [grpcPort, httpPort] = [await freePort(), await freePort()]
    throughGateway = await freePort()
    const shared = { TOLLWARD_NATS_URL: neighbours.nats.url, TOLLWARD_PAYMENT_URL: 'http://pay.example' }
    authorizer = resources.use(
      await startService('authorizer', {
        ...shared,
        TOLLWARD_HEALTH_PORT: String(await freePort()),
        TOLLWARD_GRPC_PORT: String(grpcPort),
        TOLLWARD_HTTP_PORT: String(httpPort),
      }),
    )
    resources.use(
      await startService('gateway', {
        ...shared,
        TOLLWARD_HEALTH_PORT: String(await freePort()),
        TOLLWARD_HTTP_PORT: String(throughGateway),
        TOLLWARD_UPSTREAM_URL: `http://127.0.0.1:${apiPort}`,
      }),
    )
    throughEnvoy = resources.use(await startShippedEnvoy('envoy.yaml', plainPlaces(apiPort, grpcPort))).port
  })
  after(() => resources.disposeAsync())

  async function ask(
    port: number,
    { path = '/public', method = 'GET', token, from = '127.0.0.1', headers = {}, body }: Ask,
  ): Promise<Answer> {
    const sent = httpRequest({
      host: '127.0.0.1',
      port,
      localAddress: from,
      path,
      method,
      headers: { host: 'api.example', ...(token && { authorization: `Bearer ${token}` }), ...headers },
      agent: false,
    })
    sent.end(body)
    const [response] = (await once(sent, 'response')) as [IncomingMessage]
    let text = ''
    for await (const chunk of response) text += chunk
    return { status: response.statusCode ?? 0, headers: response.headers, body: text }
  }

  /** What of an answer must be the same on both ways: all but what is of the moment. */
  function comparable({ status, headers, body }: Answer) {
    const names = ['content-type', 'cache-control', 'www-authenticate', 'ratelimit-policy']
    const problem = headers['content-type'] === 'application/problem+json' ? JSON.parse(body) : undefined
    const said = problem ? { ...problem, decision: typeof problem.decision } : body.length > 0
    return { status, said, headers: Object.fromEntries(names.map((name) => [name, headers[name]])) }
  }

  async function same(asked: Ask, status: number): Promise<void> {
    const [envoyed, gatewayed] = [await ask(throughEnvoy, asked), await ask(throughGateway, asked)]
    assert.deepEqual(comparable(envoyed), comparable(gatewayed))
    assert.equal(envoyed.status, status)
    for (const { headers } of [envoyed, gatewayed])
      assert.match(String(headers['x-tollward-decision']), /^[0-9a-f-]{36}$/)
  }

  test('the walk from public over 401, 402 and 403 to 200 is the same on both ways', async () => {
    await same({ path: '/public' }, 200)
    await same({ path: '/orders' }, 401)
    await same({ path: '/orders', token: 'nonsense' }, 401)
    await same({ path: '/nowhere' }, 401)
    const token = neighbours.issue('walker', ['orders'])
    await same({ path: '/nowhere', token }, 403)
    await same({ path: '/internal/x', token }, 403)
    await same({ path: '/orders', token: neighbours.issue('walker', []) }, 403)
    await same({ path: '/orders', token }, 402)
    await same({ path: '/orders', token, headers: { 'x-bitcoin-txid': 'ab'.repeat(32) } }, 403)
    await same({ path: '/orders', token, headers: { 'x-bitcoin-txid': 'short' } }, 400)
    await neighbours.activatePass('walker', 'orders', 1000)
    for (const port of [throughEnvoy, throughGateway]) {
      await eventually(async () => (await ask(port, { path: '/orders', token })).status === 200, {
        what: 'the pass admits',
      })
    }
    await same({ path: '/orders', token }, 200)
    const body = '{"item":"tea"}'
    await same({ path: '/orders', token, method: 'POST', body, headers: { 'content-type': 'application/json' } }, 201)
  })

  test('identity headers that a client sends arrive on neither way, those of the token on both', async () => {
    const token = neighbours.issue('echo-client', ['orders'])
    const headers = {
      'x-tollward-client': 'admin',
      'X-Tollward-Subject': ['root', 'admin'],
      'x-tollward-pass': 'free',
      'x-tollward-future': '1',
      'x-bitcoin-txid': 'ab'.repeat(32),
    }
    for (const port of [throughEnvoy, throughGateway]) {
      const arrived = JSON.parse((await ask(port, { path: '/echo', token, headers })).body).headers
      const names = Object.keys(arrived).filter(
        (name) => /tollward|bitcoin|authorization/.test(name) && name !== 'x-tollward-decision',
      )
      assert.deepEqual(Object.fromEntries(names.map((name) => [name, arrived[name]])), {
        authorization: 'Bearer internal.echo-client.jwt',
        'x-tollward-client': 'echo-client',
        'x-tollward-subject': 'echo-client',
        'x-tollward-scopes': 'orders',
      })
    }
  })

  test('a credential that is sent twice is refused on both ways', async () => {
    const token = neighbours.issue('double-client', ['orders'])
    await same({ path: '/echo', headers: { authorization: [`Bearer ${token}`, 'Bearer other'] } }, 400)
    await same({ path: '/echo', headers: { authorization: `Bearer ${token}, Bearer other` } }, 400)
  })

  test('an ambiguous path is refused, or gets to the API only in the spelling that was decided about', async () => {
    const token = neighbours.issue('path-client', ['orders'])
    const paths = [
      '//echo',
      '/public/..;/echo',
      '/public/../echo',
      '/public%2fecho',
      '/public%5cecho',
      '/public%00',
      '/echo;x=1',
    ]
    for (const path of paths) {
      assert.equal((await ask(throughGateway, { path, token })).status, 400, path)
      const { status, body } = await ask(throughEnvoy, { path, token })
      if (status === 200) assert.equal(JSON.parse(body).url, '/echo', path)
      else assert.equal(status, 400, path)
    }
    for (const path of ['/echo/../internal', '/echo/..;/internal', '/public/%2e%2e/internal']) {
      for (const port of [throughEnvoy, throughGateway]) {
        const { status } = await ask(port, { path, token })
        assert.ok(status === 400 || status === 403, `${path}: ${status}`)
      }
    }
  })

  test('a blocked source is refused on both ways, and another one is not', async () => {
    await neighbours.block('127.0.0.77')
    for (const port of [throughEnvoy, throughGateway]) {
      await eventually(async () => (await ask(port, { from: '127.0.0.77' })).status === 403, { what: 'it is blocked' })
    }
    await same({ from: '127.0.0.77' }, 403)
    await same({ from: '127.0.0.78' }, 200)
    await same({ from: '127.0.0.77', headers: { 'x-forwarded-for': '127.0.0.1' } }, 403)
  })

  test('an authorizer that is gone refuses everything, and is asked again when it is back', async () => {
    const token = neighbours.issue('lonely-client', ['orders'])
    assert.equal((await ask(throughEnvoy, { path: '/echo', token })).status, 200)
    await authorizer.kill()
    for (const path of ['/public', '/echo', '/orders', '/nowhere']) {
      assert.equal((await ask(throughEnvoy, { path, token })).status, 503, path)
    }
    await authorizer.start()
    await eventually(async () => (await ask(throughEnvoy, { path: '/echo', token })).status === 200, {
      what: 'it is asked again',
    })
  })
})
