import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { after, before, describe, test } from 'node:test'
import { fromBinary, type MessageInitShape } from '@bufbuild/protobuf'
import { Client, credentials } from '@grpc/grpc-js'
import {
  HeaderValueOption_HeaderAppendAction as AppendAction,
  Authorization,
  type CheckRequestSchema,
  type CheckResponse,
  CheckResponseSchema,
} from '@tollward/contracts/envoy'
import { type GrpcClient, grpcClient } from '@tollward/contracts/grpc'
import { EXAMPLE_DOCUMENTS, type Neighbours, newProofKey, startNeighbours } from '@tollward/decision/testing'
import { eventually, freePort, requires, type Service, startService } from '@tollward/testkit'

const skip = await requires({ tools: ['nats-server'] })

interface Asked {
  path?: string
  host?: string
  method?: string
  token?: string
  from?: string
  headers?: [string, string][]
  joined?: boolean
  /** URL-encoded PEM, as Envoy sends it. */
  certificate?: string
}

describe('authorizer', { skip }, () => {
  let neighbours: Neighbours
  let authorizer: Service
  let resources: AsyncDisposableStack
  let address: string
  let httpPort: number
  let check: GrpcClient<typeof Authorization>

  before(async () => {
    resources = new AsyncDisposableStack()
    neighbours = resources.use(await startNeighbours())
    await neighbours.apply(EXAMPLE_DOCUMENTS)
    const grpcPort = await freePort()
    httpPort = await freePort()
    address = `127.0.0.1:${grpcPort}`
    authorizer = resources.use(
      await startService('authorizer', {
        TOLLWARD_NATS_URL: neighbours.nats.url,
        TOLLWARD_HEALTH_PORT: String(await freePort()),
        TOLLWARD_GRPC_PORT: String(grpcPort),
        TOLLWARD_HTTP_PORT: String(httpPort),
        TOLLWARD_FORWARD_AUTH_PROXIES: '127.0.0.2,10.0.0.0/8',
        TOLLWARD_TRUSTED_PROXIES: '10.0.0.0/8',
      }),
    )
    check = resources.use(grpcClient(Authorization, address, credentials.createInsecure()))
  })
  after(() => resources.disposeAsync())

  const ask = (asked: Asked) => check.check(question(asked), { timeoutMs: 5000 })

  /** Sends bytes as a CheckRequest, and reads the bytes of the answer. */
  function sendBytes(bytes: Buffer): Promise<Buffer> {
    const client = new Client(address, credentials.createInsecure())
    const { promise, resolve, reject } = Promise.withResolvers<Buffer>()
    const same = (given: Buffer) => given
    client.makeUnaryRequest(`/${Authorization.typeName}/Check`, same, same, bytes, (error, answer) =>
      error || !answer ? reject(error) : resolve(answer),
    )
    return promise.finally(() => client.close())
  }

  test('a token that is bound to a DPoP key needs its proof, which does not go upstream', async () => {
    const key = await newProofKey()
    const confirmation = { method: { case: 'jkt', value: key.thumbprint } } as const
    const token = neighbours.issue('dpop-client', ['orders'], { confirmation })
    for (const joined of [false, true]) {
      const proof = await key.proof(token, 'https://api.example/echo')
      const headers: [string, string][] = [
        ['authorization', `DPoP ${token}`],
        ['dpop', proof],
      ]
      const { headers: set, headersToRemove } = okResponse(await ask({ path: '/echo', headers, joined }))
      assert.ok(headersToRemove.includes('dpop'))
      assert.ok(
        set.some(({ header }) => header?.key === 'authorization' && header.value.startsWith('Bearer internal.')),
      )
      assert.equal(deniedResponse(await ask({ path: '/echo', headers, joined })).status?.code, 401, 'a replay')
      const twice: [string, string][] = [...headers, ['dpop', await key.proof(token, 'https://api.example/echo')]]
      assert.equal(deniedResponse(await ask({ path: '/echo', headers: twice, joined })).status?.code, 401)
    }
    assert.equal(deniedResponse(await ask({ path: '/echo', token })).status?.code, 401)
  })

  test('a token that is bound to a client certificate needs the one that Envoy saw', async () => {
    const own = Buffer.from('the DER of a certificate, +/=')
    const pem = (der: Buffer) => `-----BEGIN CERTIFICATE-----\n${der.toString('base64')}\n-----END CERTIFICATE-----\n`
    const confirmation = { method: { case: 'x5tS256', value: hash('sha256', own, 'base64url') } } as const
    const token = neighbours.issue('mtls-client', ['orders'], { confirmation })
    okResponse(await ask({ path: '/echo', token, certificate: encodeURIComponent(pem(own)) }))
    for (const certificate of [
      encodeURIComponent(pem(Buffer.from('other'))),
      '',
      'nonsense',
      '%',
      pem(Buffer.from('%')),
    ]) {
      assert.equal(deniedResponse(await ask({ path: '/echo', token, certificate })).status?.code, 401, certificate)
    }
  })

  test('allows with the internal token and identity, every header overwriting, and the client told the decision', async () => {
    const token = neighbours.issue('good-client', ['orders'])
    const spoofed: [string, string][] = [
      ['x-tollward-client', 'admin'],
      ['x-tollward-pass', 'free'],
      ['x-tollward-future', '1'],
    ]
    for (const joined of [false, true]) {
      const answer = await ask({ path: '/echo', token, headers: spoofed, joined })
      assert.equal(answer.status?.code, 0)
      assert.equal(answer.httpResponse.case, 'okResponse')
      const { headers, headersToRemove, responseHeadersToAdd } = okResponse(answer)
      assert.deepEqual(Object.fromEntries(headers.map(({ header }) => [header?.key, header?.value])), {
        authorization: 'Bearer internal.good-client.jwt',
        'x-tollward-client': 'good-client',
        'x-tollward-subject': 'good-client',
        'x-tollward-scopes': 'orders',
      })
      assert.deepEqual([...headersToRemove].sort(), ['dpop', 'x-bitcoin-txid', 'x-tollward-future', 'x-tollward-pass'])
      for (const option of [...headers, ...responseHeadersToAdd]) {
        assert.equal(option.append, false, 'append is there and false')
        assert.equal(option.appendAction, AppendAction.OVERWRITE_IF_EXISTS_OR_ADD)
      }
      assert.equal(responseHeadersToAdd[0]?.header?.key, 'x-tollward-decision')
    }
  })

  test('an anonymous request goes on without any identity header or credential', async () => {
    const answer = await ask({ path: '/public', token: 'whatever', headers: [['x-tollward-client', 'admin']] })
    const { headers, headersToRemove } = okResponse(answer)
    assert.equal(headers.length, 0)
    const names = ['authorization', 'x-tollward-client', 'x-tollward-subject', 'x-tollward-scopes', 'x-tollward-pass']
    for (const name of names) assert.ok(headersToRemove.includes(name), name)
  })

  test('each refusal is a call that succeeds with a code that is not 0, a status and a problem', async () => {
    const token = neighbours.issue('poor-client', ['orders'])
    const cases: [Asked, number, number, string][] = [
      [{ path: '/orders' }, 401, 16, 'token-missing'],
      [{ path: '/orders', token: 'nonsense' }, 401, 16, 'token-invalid'],
      [{ path: '/orders', token }, 402, 9, 'payment-required'],
      [{ path: '/internal', token }, 403, 7, 'rule-denied'],
      [{ path: '/nowhere', token }, 403, 7, 'no-rule'],
      [{ path: '//public' }, 400, 3, 'malformed-request'],
      [{ path: '/public', headers: [['a', 'x'.repeat(40_000)]] }, 431, 3, 'headers-too-large'],
    ]
    for (const [asked, status, code, reason] of cases) {
      const answer = await ask(asked)
      const denied = deniedResponse(answer)
      assert.deepEqual([answer.status?.code, denied.status?.code, answer.status?.message], [code, status, reason])
      assert.equal(JSON.parse(denied.body).type, `https://tollward.dev/problems/${reason}`)
      assert.ok(
        denied.headers.every(
          ({ append, appendAction }) => append === false && appendAction === AppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
        ),
      )
    }
  })

  test('a question that is empty, incomplete or garbage is refused, with the call succeeding', async () => {
    const whole = question({ path: '/public' })
    const http = whole.attributes?.request?.http
    const incomplete: MessageInitShape<typeof CheckRequestSchema>[] = [
      {},
      { attributes: {} },
      { attributes: { ...whole.attributes, request: {} } },
      { attributes: { ...whole.attributes, source: {} } },
      {
        attributes: {
          ...whole.attributes,
          source: { address: { address: { case: 'pipe', value: { path: '/run/x' } } } },
        },
      },
      { attributes: { ...whole.attributes, request: { http: { ...http, path: '' } } } },
      { attributes: { ...whole.attributes, request: { http: { ...http, host: '' } } } },
      { attributes: { ...whole.attributes, request: { http: { ...http, method: '' } } } },
    ]
    for (const asked of incomplete) deniedResponse(await check.check(asked))
    for (const bytes of ['', 'ff', '0a05', '0affffffff7f', '0a0322010a', 'deadbeef'.repeat(100)]) {
      deniedResponse(fromBinary(CheckResponseSchema, await sendBytes(Buffer.from(bytes, 'hex'))))
    }
  })

  test('two credentials are refused, apart in header_map and joined in headers', async () => {
    const token = neighbours.issue('double-client', ['orders'])
    const headers: [string, string][] = [['authorization', 'Bearer other']]
    for (const joined of [false, true]) {
      const answer = await ask({ path: '/echo', token, headers, joined })
      assert.equal(answer.status?.message, 'malformed-request')
    }
  })

  test('the client is the peer, or behind a trusted proxy the last address that is none', async () => {
    await neighbours.block('198.51.100.7')
    const blocked = (asked: Asked) => ask(asked).then(({ status }) => status?.message === 'blocked')
    await eventually(() => blocked({ from: '198.51.100.7' }), { what: 'it is blocked' })
    const forwarded: [string, string][] = [['x-forwarded-for', '127.0.0.1, 198.51.100.7']]
    assert.equal(await blocked({ from: '10.0.0.1', headers: forwarded }), true)
    assert.equal(await blocked({ from: '192.0.2.1', headers: forwarded }), false)
    assert.equal(await blocked({ from: '198.51.100.7', headers: [['x-forwarded-for', '192.0.2.1']] }), true)
  })

  test('without the introspector a token that is not known is 503, never let through', async () => {
    const token = neighbours.issue('late-client', ['orders'])
    const release = Promise.withResolvers<void>()
    neighbours.beforeIntrospection = () => release.promise
    const answer = await ask({ path: '/echo', token })
    assert.deepEqual([answer.status?.code, deniedResponse(answer).status?.code], [14, 503])
    release.resolve()
    neighbours.beforeIntrospection = async () => {}
    await eventually(async () => (await ask({ path: '/echo', token })).status?.code === 0, {
      what: 'it is answered again',
    })
  })

  test('gRPC health says that it serves', async () => {
    const client = new Client(address, credentials.createInsecure())
    const same = (given: Buffer) => given
    const health = () => {
      const { promise, resolve, reject } = Promise.withResolvers<Buffer>()
      client.makeUnaryRequest('/grpc.health.v1.Health/Check', same, same, Buffer.alloc(0), (error, answer) =>
        error || !answer ? reject(error) : resolve(answer),
      )
      return promise
    }
    // HealthCheckResponse { status: SERVING }, which follows the service's own readiness within a moment.
    await eventually(async () => (await health()).equals(Buffer.of(8, 1)), { what: 'it says so' })
    client.close()
  })

  test('gRPC reflection, in both versions, and the watch of health answer over the same port', async () => {
    const client = new Client(address, credentials.createInsecure())
    const same = (given: Buffer) => given
    for (const version of ['v1', 'v1alpha']) {
      const path = `/grpc.reflection.${version}.ServerReflection/ServerReflectionInfo`
      const call = client.makeBidiStreamRequest(path, same, same, { deadline: Date.now() + 5000 })
      // ServerReflectionRequest { list_services: "*" }
      call.write(Buffer.from('3a012a', 'hex'))
      const [answer] = (await once(call, 'data')) as [Buffer]
      assert.ok(answer.includes(Authorization.typeName), version)
      call.end()
      const [status] = await once(call, 'status')
      assert.equal(status.code, 0)
    }
    const watch = client.makeServerStreamRequest('/grpc.health.v1.Health/Watch', same, same, Buffer.alloc(0))
    watch.on('error', () => {})
    const told: string[] = []
    watch.on('data', (health: Buffer) => told.push(health.toString('hex')))
    await eventually(() => told.at(-1) === '0801', { what: 'it is told that it serves' })
    watch.cancel()
    client.close()
  })

  describe('forward-auth', () => {
    async function forward(headers: Record<string, string | string[]>, from = '127.0.0.2', path = '/forward-auth') {
      const sent = httpRequest({
        host: '127.0.0.1',
        port: httpPort,
        localAddress: from,
        path,
        headers,
        agent: false,
      })
      sent.end()
      const [response] = (await once(sent, 'response')) as [IncomingMessage]
      let body = ''
      for await (const chunk of response) body += chunk
      return { status: response.statusCode, headers: response.headers, body }
    }
    const original = (uri: string, more: Record<string, string | string[]> = {}) => ({
      'x-forwarded-method': 'GET',
      'x-forwarded-host': 'api.example',
      'x-forwarded-uri': uri,
      'x-forwarded-for': '192.0.2.9',
      ...more,
    })

    test('200 carries every identity header, empty where there is nothing to say', async () => {
      const token = neighbours.issue('forwarded-client', ['orders'])
      const known = await forward(original('/echo', { authorization: `Bearer ${token}`, 'x-tollward-pass': 'free' }))
      assert.equal(known.status, 200)
      assert.equal(known.headers.authorization, 'Bearer internal.forwarded-client.jwt')
      assert.equal(known.headers['x-tollward-client'], 'forwarded-client')
      assert.equal(known.headers['x-tollward-pass'], '')
      const anonymous = await forward(original('/public', { authorization: `Bearer ${token}` }))
      assert.equal(anonymous.status, 200)
      for (const name of [
        'authorization',
        'x-tollward-client',
        'x-tollward-subject',
        'x-tollward-scopes',
        'x-tollward-pass',
      ]) {
        assert.equal(anonymous.headers[name], '', name)
      }
    })

    test('a DPoP proof is compared with what the proxy says was asked, and counts once', async () => {
      const key = await newProofKey()
      const confirmation = { method: { case: 'jkt', value: key.thumbprint } } as const
      const token = neighbours.issue('dpop-client', ['orders'], { confirmation })
      const proved = async (htu: string, more: Record<string, string> = { 'x-forwarded-proto': 'https' }) => {
        const dpop = await key.proof(token, htu)
        const asked = original('/echo?x=1', { authorization: `DPoP ${token}`, dpop, ...more })
        return [(await forward(asked)).status, (await forward(asked)).status]
      }
      assert.deepEqual(await proved('https://api.example/echo'), [200, 401])
      assert.deepEqual(await proved('http://api.example/echo'), [401, 401])
      assert.deepEqual(
        await proved('https://api.example/echo', {}),
        [401, 401],
        'a proxy that does not tell the scheme',
      )
    })

    test('a token that is bound to a certificate is worth nothing where the proxy shows none', async () => {
      const confirmation = { method: { case: 'x5tS256', value: 'thumbprint' } } as const
      const token = neighbours.issue('mtls-client', ['orders'], { confirmation })
      assert.equal((await forward(original('/echo', { authorization: `Bearer ${token}` }))).status, 401)
    })

    test('a refusal comes as it is', async () => {
      const refused = await forward(original('/orders'))
      assert.equal(refused.status, 401)
      assert.equal(refused.headers['content-type'], 'application/problem+json')
      assert.match(refused.headers['www-authenticate'] ?? '', /^Bearer/)
    })

    test('who is no configured proxy gets 403, whatever it claims', async () => {
      const { status, body } = await forward(original('/public'), '127.0.0.3')
      assert.equal(status, 403)
      assert.match(JSON.parse(body).type, /untrusted-proxy$/)
    })

    test('a refusal is made whole again for configured proxies, and for nobody else', async () => {
      const refused = await forward(original('/internal'), '127.0.0.2', '/forward-auth?for=nginx')
      const packed = { 'x-tollward-refusal': String(refused.headers['x-tollward-refusal']) }
      const whole = await forward(packed, '127.0.0.2', '/refusal')
      assert.equal(whole.status, Number(refused.headers['x-tollward-status']))
      assert.match(JSON.parse(whole.body).type, /token-missing$/)
      const stranger = await forward(packed, '127.0.0.3', '/refusal')
      assert.equal(stranger.status, 403)
      assert.match(JSON.parse(stranger.body).type, /untrusted-proxy$/)
    })

    test('a question that does not say once what the request was is refused', async () => {
      for (const name of ['x-forwarded-method', 'x-forwarded-host', 'x-forwarded-uri', 'x-forwarded-for']) {
        const { [name]: _left, ...others } = original('/public') as Record<string, string>
        assert.equal((await forward(others)).status, 400, `without ${name}`)
      }
      for (const name of ['x-forwarded-method', 'x-forwarded-host', 'x-forwarded-uri']) {
        assert.equal(
          (await forward(original('/public', { [name]: ['/public', '/internal'] }))).status,
          400,
          `twice ${name}`,
        )
      }
    })

    test('the client is whom the proxy names', async () => {
      await neighbours.block('198.51.100.8')
      const status = (forwardedFor: string) =>
        forward(original('/public', { 'x-forwarded-for': forwardedFor })).then((answer) => answer.status)
      await eventually(async () => (await status('198.51.100.8')) === 403, { what: 'it is blocked' })
      assert.equal(await status('192.0.2.9, 198.51.100.8'), 403)
      assert.equal(await status('198.51.100.8, 192.0.2.9'), 200)
    })
  })

  test('while the bus is away it says so, and no token is trusted', { timeout: 40_000 }, async () => {
    const token = neighbours.issue('known-client', ['orders'])
    assert.equal((await ask({ path: '/echo', token })).status?.code, 0)
    await neighbours.nats.stop()
    const ready = async () => (await fetch(`${authorizer.healthUrl}/healthz/ready`)).status
    await eventually(async () => (await ready()) === 503, { what: 'it is not ready', timeoutMs: 15_000 })
    const refused = async () => deniedResponse(await ask({ path: '/echo', token })).status?.code === 503
    await eventually(refused, { what: 'the token is not trusted any more' })
    assert.equal((await ask({ path: '/public' })).status?.code, 0)
    await neighbours.nats.start()
    await eventually(async () => (await ready()) === 200, { what: 'it is ready again', timeoutMs: 15_000 })
    await eventually(async () => (await ask({ path: '/echo', token })).status?.code === 0, {
      what: 'the token is trusted again',
    })
  })
})

function question({
  path = '/public',
  host = 'api.example',
  method = 'GET',
  token,
  from = '192.0.2.1',
  headers = [],
  joined = false,
  certificate = '',
}: Asked) {
  const list: [string, string][] =
    token === undefined ? [...headers] : [['authorization', `Bearer ${token}`], ...headers]
  const map: Record<string, string> = {}
  for (const [key, value] of list) map[key] = map[key] === undefined ? value : `${map[key]},${value}`
  const raw = list.map(([key, value]) => ({ key, rawValue: new TextEncoder().encode(value) }))
  const socketAddress = { address: from, portSpecifier: { case: 'portValue' as const, value: 40_000 } }
  return {
    attributes: {
      source: { address: { address: { case: 'socketAddress' as const, value: socketAddress } }, certificate },
      request: {
        http: { method, host, path, scheme: 'https', ...(joined ? { headers: map } : { headerMap: { headers: raw } }) },
      },
    },
  }
}

function okResponse({ httpResponse }: CheckResponse) {
  assert.equal(httpResponse.case, 'okResponse')
  return httpResponse.value
}

function deniedResponse({ status, httpResponse }: CheckResponse) {
  assert.notEqual(status?.code ?? 0, 0)
  assert.equal(httpResponse.case, 'deniedResponse')
  return httpResponse.value
}
