import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { EXAMPLE_DOCUMENTS, newProofKey } from '@tollward/decision/testing'
import { requires, temporaryDirectory } from '@tollward/testkit'
import { type Identification, makeAuthority } from '../scenario/certificates.ts'
import {
  type AuthorizerStack,
  arrivedAt,
  ask,
  plainPlaces,
  type ShippedEnvoy,
  startAuthorizerStack,
  startShippedEnvoy,
  valuesOf,
} from './envoy-stack.ts'

const skip = await requires({ tools: ['nats-server', 'envoy'] })

describe('bound tokens behind a real Envoy that takes any certificate', { skip }, () => {
  let stack: AuthorizerStack
  let resources: AsyncDisposableStack
  let envoy: ShippedEnvoy
  let ca: string
  let clients: Identification[]

  before(async () => {
    resources = new AsyncDisposableStack()
    stack = resources.use(await startAuthorizerStack(EXAMPLE_DOCUMENTS))
    const authority = await makeAuthority()
    ca = authority.cert
    clients = [await authority.issue('CN=own', 'client'), await authority.issue('CN=other', 'client')]
    const directory = resources.use(await temporaryDirectory())
    const server = await authority.issue('CN=127.0.0.1', 'server')
    const [certFile, keyFile] = [join(directory.path, 'cert.pem'), join(directory.path, 'key.pem')]
    await writeFile(certFile, server.cert)
    await writeFile(keyFile, server.key, { mode: 0o600 })
    const filters = '        - filters:\n'
    const places = {
      ...plainPlaces(stack.api.port, stack.authorizerPort),
      [filters]: `        - transport_socket:\n${tls(certFile, keyFile)}          filters:\n`,
    }
    envoy = resources.use(await startShippedEnvoy('envoy.yaml', places))
  })
  after(() => resources.disposeAsync())

  async function askWith(headers: Record<string, string>, client?: Identification) {
    const { port } = envoy
    const tls = { ca, ...(client && { cert: client.cert, key: client.key }) }
    return await ask({ port, path: '/echo?x=1', headers: { host: `127.0.0.1:${port}`, ...headers }, tls })
  }

  test('a DPoP proof counts for the address that the client used, once, and stays behind', async () => {
    const key = await newProofKey()
    const confirmation = { method: { case: 'jkt', value: key.thumbprint } } as const
    const token = stack.neighbours.issue('dpop-client', ['orders'], { confirmation })
    const headers = {
      authorization: `DPoP ${token}`,
      dpop: await key.proof(token, `https://127.0.0.1:${envoy.port}/echo`),
    }
    const arrived = arrivedAt(await askWith(headers))
    assert.deepEqual(valuesOf(arrived, 'authorization'), ['Bearer internal.dpop-client.jwt'])
    assert.deepEqual(valuesOf(arrived, 'dpop'), [])
    const replayed = await askWith(headers)
    assert.equal(replayed.status, 401)
    assert.match(replayed.headers['www-authenticate'] ?? '', /^DPoP .*error="invalid_dpop_proof"/)
    const plain = { ...headers, dpop: await key.proof(token, `http://127.0.0.1:${envoy.port}/echo`) }
    assert.equal((await askWith(plain)).status, 401, 'another scheme')
  })

  test('a token that is bound to a client certificate counts on a connection with that certificate only', async () => {
    const [own, other] = clients
    assert.ok(own && other)
    const value = hash('sha256', Buffer.from(own.der, 'base64'), 'base64url')
    const confirmation = { method: { case: 'x5tS256', value } } as const
    const headers = { authorization: `Bearer ${stack.neighbours.issue('mtls-client', ['orders'], { confirmation })}` }
    const { status, body } = await askWith(headers, own)
    assert.equal(status, 200, body)
    assert.equal((await askWith(headers, other)).status, 401)
    assert.equal((await askWith(headers)).status, 401)
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
