import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { requires } from '@tollward/testkit'
import {
  type Answered,
  type AuthorizerStack,
  arrivedAt,
  ask,
  type Places,
  plainPlaces,
  reasonOf,
  type ShippedEnvoy,
  startAuthorizerStack,
  startShippedEnvoy,
} from './envoy-stack.ts'

const skip = await requires({ tools: ['nats-server', 'envoy'] })

const DOCUMENTS = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: bodies }
spec:
  hosts: ["*"]
  rules:
    - { name: list, match: { methods: [POST], path: /graphql, graphqlOperations: [ListOrders] }, anonymous: true }
    - { name: tools, match: { methods: [POST], path: /mcp, rpcMethods: ["tools/*"], tools: [search] }, anonymous: true }
    - { name: ping, match: { methods: [POST], path: /mcp, rpcMethods: [ping] }, anonymous: true }
    - { name: upload, match: { methods: [POST], path: /upload }, anonymous: true }
`
const LIST = JSON.stringify({ operationName: 'ListOrders', query: 'query ListOrders { orders { id } }' })
const DROP = JSON.stringify({ operationName: 'DropOrders', query: 'mutation DropOrders { drop }' })
const PING = JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'ping' })
const tool = (name: string) => JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name } })
/** As shipped; the authorizer gets no more of a body. */
const BODY_BYTES_MAX = 65_536
/** What an operator may write instead of what is shipped. */
const TEXT = { 'pack_as_bytes: true': 'pack_as_bytes: false' }
const PARTS = { 'allow_partial_message: false': 'allow_partial_message: true' }

describe('bodies that a real Envoy sends along', { skip }, () => {
  let stack: AuthorizerStack
  let resources: AsyncDisposableStack
  let asShipped: ShippedEnvoy
  let asText: ShippedEnvoy
  let inParts: ShippedEnvoy
  let without: ShippedEnvoy

  before(async () => {
    resources = new AsyncDisposableStack()
    stack = resources.use(await startAuthorizerStack(DOCUMENTS))
    const start = async (file: string, changes: Places = {}) =>
      resources.use(await startShippedEnvoy(file, { ...plainPlaces(stack.api.port, stack.authorizerPort), ...changes }))
    asShipped = await start('bodies.yaml')
    asText = await start('bodies.yaml', TEXT)
    inParts = await start('bodies.yaml', { ...PARTS, ...TEXT, 'max_request_bytes: 65536': 'max_request_bytes: 100' })
    without = await start('envoy.yaml')
  })
  after(() => resources.disposeAsync())

  async function post(
    { port }: ShippedEnvoy,
    path: string,
    body: string | Uint8Array,
    headers: Record<string, string> = {},
  ): Promise<Answered> {
    return await ask({ port, path, method: 'POST', body, headers: { 'content-type': 'application/json', ...headers } })
  }

  test('a rule about the body admits what it names and nothing else, packed as bytes or as text', async () => {
    for (const envoy of [asShipped, asText]) {
      assert.equal(arrivedAt(await post(envoy, '/graphql', LIST)).bodyBytes, LIST.length, 'and the body arrives whole')
      assert.equal(arrivedAt(await post(envoy, '/mcp', tool('search'))).url, '/mcp')
      assert.equal(arrivedAt(await post(envoy, '/mcp', PING)).url, '/mcp')
      const before = stack.api.count()
      for (const [path, body] of [
        ['/graphql', DROP],
        ['/graphql', '{'],
        ['/graphql', ''],
        ['/graphql', `[${LIST},${DROP}]`],
        ['/graphql', `${LIST.slice(0, -1)},"operationName":"DropOrders"}`],
        ['/graphql', Buffer.from([0xff, ...Buffer.from(LIST)])],
        ['/mcp', tool('delete')],
        ['/mcp', `[${PING},${tool('delete')}]`],
      ] as const) {
        const { status } = await post(envoy, path, body)
        assert.ok([400, 401, 403].includes(status), `${status} to ${body}`)
      }
      assert.equal(stack.api.count(), before, 'none of them reached the API')
    }
  })

  test('a body of which Envoy sent only the beginning satisfies no rule about bodies', async () => {
    const before = stack.api.count()
    for (const body of [LIST + ' '.repeat(100), `${LIST}${' '.repeat(100)}${DROP}`, PING + ' '.repeat(100)]) {
      for (const headers of [{}, { 'x-envoy-auth-partial-body': 'false' }]) {
        const path = body.startsWith(PING) ? '/mcp' : '/graphql'
        const { status } = await post(inParts, path, body, headers)
        assert.ok([400, 401, 403].includes(status), `${status}`)
      }
    }
    assert.equal(stack.api.count(), before, 'none of them reached the API')
    assert.equal(arrivedAt(await post(inParts, '/graphql', LIST)).bodyBytes, LIST.length, 'one that fits does')
  })

  test('a body that is larger than what Envoy may send along is refused by Envoy with 413', async () => {
    const before = stack.api.count()
    assert.equal((await post(asShipped, '/graphql', LIST + ' '.repeat(BODY_BYTES_MAX))).status, 413)
    assert.equal(stack.api.count(), before)
    const largest = LIST + ' '.repeat(BODY_BYTES_MAX - LIST.length)
    assert.equal(arrivedAt(await post(asShipped, '/graphql', largest)).bodyBytes, BODY_BYTES_MAX)
  })

  test('where Envoy sends no body, rules about bodies admit nothing, and others go on', async () => {
    for (const path of ['/graphql', '/mcp']) {
      const refused = await post(without, path, path === '/mcp' ? PING : LIST)
      assert.ok([400, 401, 403].includes(refused.status), `${refused.status}`)
      assert.ok(reasonOf(refused))
    }
    const large = Buffer.alloc(300_000, 'x')
    for (const envoy of [without, asShipped])
      assert.equal(arrivedAt(await post(envoy, '/upload', large)).bodyBytes, large.length)
  })

  test('a body too large for the authorizer is refused even where Envoy lets through what gets no answer', async () => {
    const changes = {
      ...plainPlaces(stack.api.port, stack.authorizerPort),
      'max_request_bytes: 65536': 'max_request_bytes: 4000000',
      'failure_mode_allow: false': 'failure_mode_allow: true',
    }
    await using envoy = await startShippedEnvoy('bodies.yaml', changes)
    const before = stack.api.count()
    for (const bytes of [800_000, 1_200_000, 3_900_000]) {
      const answered = await post(envoy, '/graphql', Buffer.alloc(bytes, LIST.padEnd(1000)))
      assert.ok(answered.status >= 400 && answered.status < 500, `${answered.status} to ${bytes} bytes`)
      assert.ok(reasonOf(answered))
    }
    assert.equal(stack.api.count(), before)
  })
})
