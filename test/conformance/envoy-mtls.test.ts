import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { type ClientHttp2Session, connect } from 'node:http2'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { newProofKey } from '@tollward/decision/testing'
import { requires, temporaryDirectory } from '@tollward/testkit'
import { type Identification, makeAuthority } from '../scenario/certificates.ts'
import {
  type Answered,
  type Arrived,
  type AuthorizerStack,
  arrivedAt,
  ask,
  type Places,
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
metadata: { name: mesh }
spec:
  hosts: ["*"]
  rules:
    - name: web
      match: { path: /web, principals: ["spiffe://example.org/ns/shop/sa/web"] }
      anonymous: true
    - { name: shop, match: { path: /shop, namespaces: [shop] }, anonymous: true }
    - { name: bound, match: { path: /bound }, require: { token: { boundTo: certificate } } }
    - { name: any, match: { path: /any }, require: { token: {} } }
`

describe('a real Envoy that asks clients for certificates, and the authorizer over a unix socket', { skip }, () => {
  let stack: AuthorizerStack
  let resources: AsyncDisposableStack
  let places: Places
  let envoy: ShippedEnvoy
  let clients: Record<'web' | 'cart' | 'other' | 'named' | 'stranger', Identification>
  let ca: string

  before(async () => {
    resources = new AsyncDisposableStack()
    const directory = resources.use(await temporaryDirectory())
    const file = (name: string) => join(directory.path, name)
    stack = resources.use(await startAuthorizerStack(DOCUMENTS, { TOLLWARD_GRPC_SOCKET: file('authorizer.sock') }))
    const [authority, strangers] = [await makeAuthority(), await makeAuthority()]
    ca = authority.cert
    const server = await authority.issue('CN=127.0.0.1', 'server')
    const workload = (path: string) => authority.issue('CN=workload', 'client', { url: `spiffe://example.org/${path}` })
    clients = {
      web: await workload('ns/shop/sa/web'),
      cart: await workload('ns/shop/sa/cart'),
      other: await workload('ns/shopping/sa/web'),
      named: await authority.issue('CN=spiffe://example.org/ns/shop/sa/web', 'client'),
      stranger: await strangers.issue('CN=workload', 'client', { url: 'spiffe://example.org/ns/shop/sa/web' }),
    }
    await writeFile(file('server.pem'), server.cert)
    await writeFile(file('server-key.pem'), server.key, { mode: 0o600 })
    await writeFile(file('clients-ca.pem'), authority.cert)
    places = {
      'port_value: 10443': 'port_value: 0',
      'port_value: 8081': `port_value: ${stack.api.port}`,
      '/etc/envoy': directory.path,
      '/run/tollward': directory.path,
    }
    envoy = resources.use(await startShippedEnvoy('mtls.yaml', places))
  })
  after(() => resources.disposeAsync())

  /** Over HTTP/1.1 and over HTTP/2, each on a connection of its own. */
  async function both(path: string, client: Identification, headers: Record<string, string> = {}): Promise<Answered[]> {
    const tls = { ca, cert: client.cert, key: client.key }
    await using second = await connected(`https://127.0.0.1:${envoy.port}`, tls)
    return [await ask({ port: envoy.port, path, headers, tls }), await askOver(second.session, path, headers)]
  }

  async function admits(
    path: string,
    client: Identification,
    headers: Record<string, string> = {},
  ): Promise<Arrived[]> {
    return (await both(path, client, headers)).map(arrivedAt)
  }

  async function refuses(reason: string, path: string, client: Identification, headers: Record<string, string> = {}) {
    const before = stack.api.count()
    for (const answered of await both(path, client, headers)) assert.equal(reasonOf(answered), reason, answered.body)
    assert.equal(stack.api.count(), before, 'it did not reach the API')
  }

  test('a rule for a workload admits the one that its certificate names, and no other', async () => {
    await admits('/web', clients.web)
    for (const client of [clients.cart, clients.other]) await refuses('token-missing', '/web', client)
    for (const client of [clients.web, clients.cart]) await admits('/shop', client)
    await refuses('token-missing', '/shop', clients.other)
  })

  test('what a client says of itself in headers or in its subject names no workload', async () => {
    const uri = 'spiffe://example.org/ns/shop/sa/web'
    const said = {
      'x-forwarded-client-cert': `By=spiffe://example.org/x;Hash=${'0'.repeat(64)};URI=${uri}`,
      'x-tollward-principal': uri,
    }
    await refuses('token-missing', '/web', clients.other, said)
    for (const path of ['/web', '/shop']) await refuses('token-missing', path, clients.named, said)
    for (const arrived of await admits('/shop', clients.cart, said))
      for (const name of Object.keys(said)) assert.deepEqual(valuesOf(arrived, name), [], `${name} does not pass`)
  })

  test('a client without a certificate of the right authority gets no connection', async () => {
    const { stranger } = clients
    for (const tls of [{ ca }, { ca, cert: stranger.cert, key: stranger.key }])
      await assert.rejects(ask({ port: envoy.port, path: '/web', tls }))
  })

  test('a token that is bound to a certificate counts with it only, and a rule that wants one refuses others', async () => {
    const { neighbours } = stack
    const value = hash('sha256', Buffer.from(clients.web.der, 'base64'), 'base64url')
    const bound = neighbours.issue('bound-client', [], { confirmation: { method: { case: 'x5tS256', value } } })
    const headers = { authorization: `Bearer ${bound}` }
    for (const path of ['/bound', '/any']) {
      await admits(path, clients.web, headers)
      await refuses('proof-invalid', path, clients.cart, headers)
    }
    const loose = { authorization: `Bearer ${neighbours.issue('loose-client', [])}` }
    await admits('/any', clients.web, loose)
    await refuses('binding-missing', '/bound', clients.web, loose)
  })

  test('a DPoP proof counts for the https URI of either protocol', async () => {
    const key = await newProofKey()
    const confirmation = { method: { case: 'jkt', value: key.thumbprint } } as const
    const token = stack.neighbours.issue('dpop-client', [], { confirmation })
    const tls = { ca, cert: clients.web.cert, key: clients.web.key }
    await using second = await connected(`https://127.0.0.1:${envoy.port}`, tls)
    const proof = () => key.proof(token, 'https://api.example/any')
    const headers = async () => ({ authorization: `DPoP ${token}`, dpop: await proof() })
    for (const answered of [
      await ask({ port: envoy.port, path: '/any', headers: await headers(), tls }),
      await askOver(second.session, '/any', await headers()),
    ]) {
      assert.deepEqual(valuesOf(arrivedAt(answered), 'dpop'), [], 'the proof stays behind')
    }
  })
})

type Tls = { ca: string; cert?: string; key?: string }

async function connected(url: string, tls: Tls): Promise<AsyncDisposable & { session: ClientHttp2Session }> {
  const session = connect(url, tls)
  await once(session, 'connect')
  return {
    session,
    [Symbol.asyncDispose]: async () => {
      session.close()
      await once(session, 'close')
    },
  }
}

async function askOver(session: ClientHttp2Session, path: string, headers: Record<string, string>): Promise<Answered> {
  const stream = session.request({ ':path': path, ':authority': 'api.example', ...headers })
  const [head] = await once(stream, 'response')
  let body = ''
  for await (const chunk of stream) body += chunk
  return { status: Number(head[':status']), headers: head, body }
}
