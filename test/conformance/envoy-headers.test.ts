import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, type OutgoingHttpHeaders } from 'node:http2'
import { connect as connectTcp } from 'node:net'
import { after, before, describe, test } from 'node:test'
import { eventually, requires } from '@tollward/testkit'
import {
  type Arrived,
  type Ask,
  type AuthorizerStack,
  arrivedAt,
  ask,
  plainPlaces,
  reasonOf,
  type ShippedEnvoy,
  startAuthorizerStack,
  startShippedEnvoy,
  valuesOf,
} from './envoy-stack.ts'

const skip = await requires({ tools: ['nats-server', 'envoy'] })

const DOCUMENTS = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: headers }
spec:
  hosts: [api.example]
  rules:
    - { name: open, match: { path: /open }, anonymous: true }
    - { name: known, match: { path: /known }, require: { token: {} } }
    - name: old
      match: { prefix: /v1 }
      require: { token: {} }
      rewrite:
        prefix: /v2
        query: { set: { tenant: "a b&c", version: "2" }, remove: [debug] }
        headers: { set: { x-plan: gold, x-empty: "" }, remove: [x-internal, cookie] }
        responseHeaders: { set: { x-served-by: tollward, x-answer: hidden } }
    - name: moved
      match: { path: "/items/{id}" }
      require: { token: {} }
      rewrite: { path: "/things/{id}/view" }
    - name: asked
      match: { path: /asked }
      anonymous: true
      rewrite: { query: { set: { version: "2" }, remove: [debug] } }
    - name: chosen
      match: { path: /chosen, headers: { x-version: "2" } }
      anonymous: true
---
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: trial }
spec:
  hosts: [trial.example]
  mode: observe
  rules:
    - { name: only, match: { path: /known }, require: { token: { scopes: [nobody] } } }
`

/** Paths that the tests' Envoy answers itself: where a request ends up that is routed by what the authorizer made of it. */
const OTHER_ROUTE = {
  '                        - match: { prefix: / }\n': `                        - match: { prefix: /v2 }
                          direct_response: { status: 418 }
                        - match: { prefix: /things }
                          direct_response: { status: 418 }
                        - match: { prefix: / }
`,
}

describe('what a real Envoy makes of a request that is admitted', { skip }, () => {
  let stack: AuthorizerStack
  let resources: AsyncDisposableStack
  let asShipped: ShippedEnvoy
  let joining: ShippedEnvoy

  before(async () => {
    resources = new AsyncDisposableStack()
    stack = resources.use(await startAuthorizerStack(DOCUMENTS))
    const places = { ...plainPlaces(stack.api.port, stack.authorizerPort), ...OTHER_ROUTE }
    asShipped = resources.use(await startShippedEnvoy('envoy.yaml', places))
    const joined = { 'encode_raw_headers: true': 'encode_raw_headers: false' }
    joining = resources.use(await startShippedEnvoy('envoy.yaml', { ...places, ...joined }))
  })
  after(() => resources.disposeAsync())

  async function arrived(asked: Omit<Ask, 'port'>, { port } = asShipped): Promise<Arrived> {
    return arrivedAt(await ask({ ...asked, port }))
  }

  test('a path is rewritten for the API, with all of its query, and stays on the route that was decided about', async () => {
    const token = stack.neighbours.issue('rewritten', [])
    assert.equal((await arrived({ path: '/items/a%20b?x=1&x=2', token })).url, '/things/a%20b/view?x=1&x=2')
    assert.match((await arrived({ path: '/v1/list', token })).url, /^\/v2\/list\?/)
    assert.match((await arrived({ path: '/v1', token })).url, /^\/v2\?/)
  })

  test('query parameters of a rule are set and removed in every spelling, and the others stay as they are', async () => {
    const token = stack.neighbours.issue('queried', [])
    const query = async (path: string) => new URL((await arrived({ path, token })).url, 'http://api').searchParams
    for (const sent of [
      'debug=1&version=1&keep=%41',
      'd%65bug=1&vers%69on=1&keep=A&debug',
      'version=1&version=3&keep=A',
    ]) {
      const got = await query(`/v1/x?${sent}`)
      assert.deepEqual([got.getAll('version'), got.getAll('debug'), got.getAll('keep')], [['2'], [], ['A']], sent)
      assert.deepEqual(got.getAll('tenant'), ['a b&c'], sent)
    }
    for (const sent of ['', '?debug=1', '?d%65bug=1&version=9']) {
      const got = await query(`/asked${sent}`)
      assert.deepEqual([...got], [['version', '2']], sent)
    }
  })

  test('headers of a rule are set and removed, on the request and on the answer', async () => {
    const token = stack.neighbours.issue('headed', [])
    const headers = {
      'x-plan': ['free', 'lead'],
      'X-Internal': 'yes',
      cookie: 'a=b',
      'x-empty': 'full',
      'x-kept': 'kept',
    }
    const answered = await ask({ port: asShipped.port, path: '/v1/x', token, headers })
    const got = arrivedAt(answered)
    assert.deepEqual(valuesOf(got, 'x-plan'), ['gold'])
    assert.deepEqual(valuesOf(got, 'x-kept'), ['kept'])
    for (const name of ['x-internal', 'cookie']) assert.deepEqual(valuesOf(got, name), [], name)
    assert.ok(['', undefined].includes(valuesOf(got, 'x-empty')[0]), 'what the client sent does not survive')
    assert.equal(answered.headers['x-served-by'], 'tollward')
    assert.equal(answered.headers['x-answer'], 'hidden', 'in the place of what the API said')
    assert.match(String(answered.headers['x-tollward-decision']), /^[0-9a-f-]{36}$/)
  })

  test('identity headers of a client arrive in no spelling, over neither protocol, however headers are sent along', async () => {
    const token = stack.neighbours.issue('true-client', ['orders'])
    const spoofed: Record<string, string | string[]>[] = [
      { 'x-tollward-client': 'admin', 'x-tollward-subject': 'admin', 'x-tollward-scopes': 'all' },
      { 'X-TOLLWARD-CLIENT': 'admin', 'X-Tollward-Subject': ['root', 'admin'] },
      { 'x-tollward-client': ['true-client', 'admin'], 'x-tollward-pass': 'free', 'x-tollward-anything': '1' },
      { 'x-tollward-client': '', 'x-tollward-subject': '\u00ff' },
      { 'x-bitcoin-txid': 'ab'.repeat(32), 'x-tollward-pass': 'free' },
    ]
    for (const envoy of [asShipped, joining]) {
      for (const headers of spoofed) {
        const known = await arrived({ path: '/known', token, headers }, envoy)
        assert.deepEqual(identityOf(known), { client: ['true-client'], subject: ['true-client'], scopes: ['orders'] })
        assert.deepEqual(valuesOf(known, 'authorization'), ['Bearer internal.true-client.jwt'])
        const open = await arrived({ path: '/open', headers }, envoy)
        assert.deepEqual(identityOf(open), {})
        for (const name of ['authorization', 'x-bitcoin-txid']) assert.deepEqual(valuesOf(open, name), [])
      }
      const { ':status': status, body } = await askOverHttp2(envoy.port, '/open', { 'x-tollward-client': ['a', 'b'] })
      assert.deepEqual(identityOf(arrivedAt({ status: Number(status), headers: {}, body })), {})
      for (const name of ['x_tollward_client', 'x-tollward_client', 'X_TOLLWARD_CLIENT'])
        assert.equal((await ask({ port: envoy.port, path: '/open', headers: { [name]: 'admin' } })).status, 400, name)
    }
  })

  test('a Connection that names identity headers does not take away what is said of the caller', async () => {
    const token = stack.neighbours.issue('connected-client', [])
    for (const { port } of [asShipped, joining]) {
      for (const named of ['x-tollward-client', 'x-tollward-client, authorization', 'X-Tollward-Subject, close']) {
        const headers = { connection: named, 'x-tollward-client': 'admin' }
        const known = await ask({ port, path: '/known', token, headers })
        if (known.status === 200)
          assert.deepEqual(valuesOf(arrivedAt(known), 'x-tollward-client'), ['connected-client'])
        else assert.ok([400, 401].includes(known.status), `${known.status}`)
        const open = await ask({ port, path: '/open', headers })
        if (open.status === 200) assert.deepEqual(identityOf(arrivedAt(open)), {})
        else assert.equal(open.status, 400)
      }
    }
  })

  test('a second credential is refused, apart as joined, and so is what smuggles one', async () => {
    const [own, other] = [stack.neighbours.issue('one', []), stack.neighbours.issue('two', [])]
    for (const { port } of [asShipped, joining]) {
      for (const authorization of [[`Bearer ${own}`, `Bearer ${other}`], [`Bearer ${own}, Bearer ${other}`]]) {
        const { status } = await ask({ port, path: '/known', headers: { authorization } })
        assert.ok(status === 400 || status === 401, `${status} ${authorization.map((value) => value.length)}`)
      }
    }
    const before = stack.api.count()
    const lines = [`Authorization : Bearer ${own}`, `X-A: 1\r\n Authorization: Bearer ${own}`, 'X-A: \u0000']
    for (const line of lines) {
      const answer = await raw(
        asShipped.port,
        `GET /known HTTP/1.1\r\nHost: api.example\r\n${line}\r\nConnection: close\r\n\r\n`,
      )
      assert.match(answer, /^HTTP\/1\.1 40[01] /)
    }
    assert.equal(stack.api.count(), before)
  })

  test('a header whose repetitions differ satisfies no rule that compares it', async () => {
    for (const envoy of [asShipped, joining]) {
      assert.equal((await ask({ port: envoy.port, path: '/chosen', headers: { 'x-version': '2' } })).status, 200)
      for (const values of [['1', '2'], ['2', '1'], ['2', '2'], ['2,1']]) {
        const { status } = await ask({ port: envoy.port, path: '/chosen', headers: { 'x-version': values } })
        assert.ok(status === 401 || status === 400, `${status} ${values}`)
      }
    }
  })

  test('the access log says of each request which rule decided, for whom, why it was refused, and what an observing policy would refuse', async () => {
    const token = stack.neighbours.issue('logged-client', [])
    const { port } = asShipped
    const [admitted, refused, observed] = [
      await ask({ port, path: '/known?secret=1', token }),
      await ask({ port, path: '/known' }),
      await ask({ port, path: '/known', token, headers: { host: 'trial.example' } }),
    ]
    assert.deepEqual([admitted.status, refused.status, observed.status], [200, 401, 200])
    assert.equal(reasonOf(refused), 'token-missing')
    const line = async ({ headers }: typeof admitted): Promise<Record<string, unknown>> => {
      const id = String(headers['x-tollward-decision'])
      return await eventually(
        async () => {
          await fetch(`${asShipped.envoy.adminUrl}/reopen_logs`, { method: 'POST' })
          const found = asShipped.envoy.lines.find((said) => said.startsWith('{') && said.includes(id))
          return found === undefined ? false : JSON.parse(found)
        },
        { what: `the access log has ${id}` },
      )
    }
    const told = await line(admitted)
    assert.deepEqual(
      [told.rule, told.client, told.path, told.status],
      ['headers/known', 'logged-client', '/known', 200],
    )
    assert.deepEqual([(await line(refused)).reason, (await line(refused)).status], ['token-missing', 401])
    assert.equal((await line(observed)).would_refuse, 'scope-missing')
    const log = asShipped.envoy.lines.join('\n')
    assert.ok(!log.includes(token) && !log.includes('secret='), 'neither tokens nor queries are in it')
  })
})

/** What the API is told of the caller, by name without prefix. */
function identityOf({ fields }: Arrived): Record<string, string[]> {
  const told: Record<string, string[]> = {}
  for (const [name, value] of fields) {
    const [, what] = /^x-tollward-(.*)$/.exec(name) ?? []
    if (what !== undefined && what !== 'decision') told[what] = [...(told[what] ?? []), value]
  }
  return told
}

async function askOverHttp2(port: number, path: string, headers: OutgoingHttpHeaders) {
  const session = connect(`http://127.0.0.1:${port}`)
  try {
    const stream = session.request({ ':path': path, ':authority': 'api.example', ...headers })
    const [head] = await once(stream, 'response')
    let body = ''
    for await (const chunk of stream) body += chunk
    return { ...head, body }
  } finally {
    session.close()
  }
}

/** Sends bytes that no client library would, and returns the beginning of what comes back. */
async function raw(port: number, request: string): Promise<string> {
  const socket = connectTcp(port, '127.0.0.1')
  try {
    socket.write(request, 'latin1')
    const [answer] = await once(socket, 'data')
    return String(answer)
  } finally {
    socket.destroy()
  }
}
