import assert from 'node:assert/strict'
import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { after, before, describe, test } from 'node:test'
import { eventually, requires } from '@tollward/testkit'
import {
  type AuthorizerStack,
  plainPlaces,
  type ShippedEnvoy,
  startAuthorizerStack,
  startShippedEnvoy,
} from './envoy-stack.ts'

const skip = await requires({ tools: ['nats-server', 'envoy'] })

const DOCUMENTS = `
apiVersion: tollward.dev/v1
kind: RateLimit
metadata: { name: edge }
spec:
  domain: edge
  rules:
    - { name: address, entries: [{ key: remote_address }], limit: { requests: 6, perSeconds: 600 } }
    - name: login
      entries: [{ key: path, value: /login }, { key: remote_address }]
      limit: { requests: 2, perSeconds: 600 }
`

describe('an Envoy that asks for limits alone', { skip }, () => {
  let resources: AsyncDisposableStack
  let stack: AuthorizerStack
  let shipped: ShippedEnvoy

  before(async () => {
    resources = new AsyncDisposableStack()
    stack = resources.use(await startAuthorizerStack(DOCUMENTS))
    shipped = resources.use(
      await startShippedEnvoy('ratelimit.yaml', plainPlaces(stack.api.port, stack.authorizerPort)),
    )
    // Until Envoy has reached the authorizer it lets everything through, as its failure mode says.
    await eventually(async () => (await ask('/', '127.0.0.9')).headers.ratelimit, {
      what: 'Envoy to ask the authorizer',
    })
  })
  after(() => resources.disposeAsync())

  async function ask(path: string, from: string): Promise<{ status: number; headers: IncomingMessage['headers'] }> {
    const sent = httpRequest({ host: '127.0.0.1', port: shipped.port, localAddress: from, path, agent: false })
    sent.end()
    const [response] = (await once(sent, 'response')) as [IncomingMessage]
    response.resume()
    await once(response, 'end')
    return { status: response.statusCode ?? 0, headers: response.headers }
  }

  test('each descriptor is held to its limit, and a refusal of one takes from no other', async () => {
    const from = '127.0.0.10'
    const statuses = []
    for (let n = 0; n < 6; n++) statuses.push((await ask('/login', from)).status)
    assert.deepEqual(statuses, [200, 200, 429, 429, 429, 429])
    const others = []
    for (let n = 0; n < 6; n++) others.push((await ask('/other', from)).status)
    assert.deepEqual(others, [200, 200, 200, 200, 429, 429])
    assert.equal((await ask('/login', '127.0.0.11')).status, 200, 'another address counts apart')
  })

  test('clients are told the limit, and with a refusal when to come back; refused requests reach no API', async () => {
    const from = '127.0.0.12'
    const admitted = await ask('/login', from)
    assert.equal(admitted.headers['ratelimit-policy'], '"edge/login";q=2;w=600')
    assert.match(String(admitted.headers.ratelimit), /^"edge\/login";r=1;t=\d+$/)
    await ask('/login', from)
    const arrived = stack.api.count()
    const refused = await ask('/login', from)
    assert.equal(refused.status, 429)
    assert.match(String(refused.headers.ratelimit), /^"edge\/login";r=0;t=\d+$/)
    const wait = Number(refused.headers['retry-after'])
    assert.ok(wait > 290 && wait <= 300, `retry-after ${wait}`)
    assert.equal(stack.api.count(), arrived)
  })

  test('a changed document counts for the next request', async () => {
    const from = '127.0.0.13'
    for (let n = 0; n < 2; n++) assert.equal((await ask('/login', from)).status, 200)
    assert.equal((await ask('/login', from)).status, 429)
    await stack.neighbours.apply(DOCUMENTS.replace('spec:', 'spec:\n  mode: observe'))
    await eventually(async () => (await ask('/login', from)).status === 200, { what: 'the document to be in force' })
    await stack.neighbours.apply(DOCUMENTS)
    await eventually(async () => (await ask('/login', from)).status === 429, { what: 'the document to be back' })
  })
})
