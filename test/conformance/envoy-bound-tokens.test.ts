import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import type { IncomingMessage } from 'node:http'
import { request as httpsRequest } from 'node:https'
import { join, resolve } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { EXAMPLE_DOCUMENTS, type Neighbours, newProofKey, startNeighbours } from '@tollward/decision/testing'
import { createApi } from '@tollward/example-api'
import { freePort, requires, startEnvoy, startService, temporaryDirectory } from '@tollward/testkit'
import { type Identification, makeAuthority } from '../scenario/certificates.ts'

const skip = await requires({ tools: ['nats-server', 'envoy'] })
const CONFIG = resolve(import.meta.dirname, '../../deploy/envoy/envoy.yaml')

describe('bound tokens behind a real Envoy that terminates TLS', { skip }, () => {
  let neighbours: Neighbours
  let resources: AsyncDisposableStack
  let port: number
  let clients: Identification[]

  before(async () => {
    resources = new AsyncDisposableStack()
    neighbours = resources.use(await startNeighbours())
    await neighbours.apply(EXAMPLE_DOCUMENTS)
    const api = createApi()
    const apiPort = Number(new URL(await api.listen({ host: '127.0.0.1', port: 0 })).port)
    resources.defer(() => api.close())
    const grpcPort = await freePort()
    resources.use(
      await startService('authorizer', {
        TOLLWARD_NATS_URL: neighbours.nats.url,
        TOLLWARD_HEALTH_PORT: String(await freePort()),
        TOLLWARD_GRPC_PORT: String(grpcPort),
        TOLLWARD_HTTP_PORT: String(await freePort()),
      }),
    )
    const authority = await makeAuthority()
    clients = [await authority.issue('CN=own', 'client'), await authority.issue('CN=other', 'client')]
    const directory = resources.use(await temporaryDirectory())
    const server = await authority.issue('CN=127.0.0.1', 'server')
    const [certFile, keyFile] = [join(directory.path, 'cert.pem'), join(directory.path, 'key.pem')]
    await writeFile(certFile, server.cert)
    await writeFile(keyFile, server.key, { mode: 0o600 })
    const config = (await readFile(CONFIG, 'utf8'))
      .replace('port_value: 10000', 'port_value: 0')
      .replace('port_value: 8081', `port_value: ${apiPort}`)
      .replace('port_value: 9191', `port_value: ${grpcPort}`)
      .replace('        - filters:\n', `        - transport_socket:\n${tls(certFile, keyFile)}          filters:\n`)
    const envoy = resources.use(await startEnvoy(config))
    port = await envoy.port('api')
  })
  after(() => resources.disposeAsync())

  async function ask(headers: Record<string, string>, client?: Identification) {
    const identification = client ? { cert: client.cert, key: client.key } : {}
    const options = { host: '127.0.0.1', port, path: '/echo?x=1', agent: false, rejectUnauthorized: false }
    const sent = httpsRequest({ ...options, ...identification, headers })
    sent.end()
    const [response] = (await once(sent, 'response')) as [IncomingMessage]
    let body = ''
    for await (const chunk of response) body += chunk
    return { status: response.statusCode, challenge: response.headers['www-authenticate'], body }
  }

  test('a DPoP proof counts for the address that the client used, once, and stays behind', async () => {
    const key = await newProofKey()
    const confirmation = { method: { case: 'jkt', value: key.thumbprint } } as const
    const token = neighbours.issue('dpop-client', ['orders'], { confirmation })
    const headers = { authorization: `DPoP ${token}`, dpop: await key.proof(token, `https://127.0.0.1:${port}/echo`) }
    const { status, body } = await ask(headers)
    assert.equal(status, 200, body)
    const echoed = JSON.parse(body).headers
    assert.equal(echoed.authorization, 'Bearer internal.dpop-client.jwt')
    assert.equal(echoed.dpop, undefined)
    const replayed = await ask(headers)
    assert.equal(replayed.status, 401)
    assert.match(replayed.challenge ?? '', /^DPoP .*error="invalid_dpop_proof"/)
    const plain = { ...headers, dpop: await key.proof(token, `http://127.0.0.1:${port}/echo`) }
    assert.equal((await ask(plain)).status, 401, 'another scheme')
  })

  test('a token that is bound to a client certificate counts on a connection with that certificate only', async () => {
    const [own, other] = clients
    assert.ok(own && other)
    const value = hash('sha256', Buffer.from(own.der, 'base64'), 'base64url')
    const confirmation = { method: { case: 'x5tS256', value } } as const
    const headers = { authorization: `Bearer ${neighbours.issue('mtls-client', ['orders'], { confirmation })}` }
    const { status, body } = await ask(headers, own)
    assert.equal(status, 200, body)
    assert.equal((await ask(headers, other)).status, 401)
    assert.equal((await ask(headers)).status, 401)
  })
})

/** Asks for a client certificate and takes any, or none: the handshake proves its key, and tokens name it by its hash. */
function tls(certFile: string, keyFile: string): string {
  return `            name: envoy.transport_sockets.tls
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
              require_client_certificate: false
              common_tls_context:
                validation_context: { trust_chain_verification: ACCEPT_UNTRUSTED, trusted_ca: { filename: ${certFile} } }
                tls_certificates:
                  - certificate_chain: { filename: ${certFile} }
                    private_key: { filename: ${keyFile} }
`
}
