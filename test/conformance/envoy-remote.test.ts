import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { requires, temporaryDirectory } from '@tollward/testkit'
import { makeAuthority } from '../scenario/certificates.ts'
import { type AuthorizerStack, ask, plainPlaces, startAuthorizerStack, startShippedEnvoy } from './envoy-stack.ts'

const skip = await requires({ tools: ['nats-server', 'envoy'] })

const DOCUMENTS = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: open }
spec: { hosts: ["*"], rules: [{ name: open, match: { path: /open }, anonymous: true }] }
`

describe('a real Envoy that asks an authorizer elsewhere over TLS', { skip }, () => {
  let stack: AuthorizerStack
  let resources: AsyncDisposableStack
  let file: (name: string) => string

  before(async () => {
    resources = new AsyncDisposableStack()
    const directory = resources.use(await temporaryDirectory())
    file = (name) => join(directory.path, name)
    const [authority, others] = [await makeAuthority(), await makeAuthority()]
    const files = {
      authorizer: await authority.issue('CN=authorizer', 'server', { dns: 'authorizer.internal' }),
      client: await authority.issue('CN=envoy', 'client'),
      stranger: await others.issue('CN=envoy', 'client'),
    }
    for (const [name, { cert, key }] of Object.entries(files)) {
      await writeFile(file(`${name}.pem`), cert)
      await writeFile(file(`${name}-key.pem`), key, { mode: 0o600 })
    }
    await writeFile(file('authorizer-ca.pem'), authority.cert)
    await writeFile(file('other-ca.pem'), others.cert)
    stack = resources.use(
      await startAuthorizerStack(DOCUMENTS, {
        TOLLWARD_GRPC_TLS_CERT_FILE: file('authorizer.pem'),
        TOLLWARD_GRPC_TLS_KEY_FILE: file('authorizer-key.pem'),
        TOLLWARD_GRPC_CLIENT_CA_FILE: file('authorizer-ca.pem'),
      }),
    )
  })
  after(() => resources.disposeAsync())

  /** The status of an admissible request through an Envoy in which something is changed. */
  async function statusWith(changes: Readonly<Record<string, string>>): Promise<number> {
    const places = {
      ...plainPlaces(stack.api.port, stack.authorizerPort),
      'address: authorizer.internal': 'address: 127.0.0.1',
      '/etc/envoy': file('.'),
      ...changes,
    }
    await using envoy = await startShippedEnvoy('remote.yaml', places)
    return (await ask({ port: envoy.port, path: '/open' })).status
  }

  test('with the certificate of the authority that the authorizer wants, it is answered', async () => {
    assert.equal(await statusWith({}), 200)
  })

  test('with a certificate of another authority it is not answered, and so nothing passes', async () => {
    assert.equal(await statusWith({ 'client.pem': 'stranger.pem', 'client-key.pem': 'stranger-key.pem' }), 503)
  })

  test('whoever cannot prove to be the authorizer is not believed', async () => {
    assert.equal(await statusWith({ 'authorizer-ca.pem': 'other-ca.pem' }), 503)
    assert.equal(await statusWith({ 'exact: authorizer.internal': 'exact: elsewhere.internal' }), 503)
  })
})
