import assert from 'node:assert/strict'
import { test } from 'node:test'
import { requires, startEnvoy } from './mod.ts'

const skip = await requires({ tools: ['envoy'] })

const answering = (status: number) => `
static_resources:
  listeners:
    - name: http
      address: { socket_address: { address: 127.0.0.1, port_value: 0 } }
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: http
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
                route_config:
                  virtual_hosts:
                    - { name: all, domains: ["*"], routes: [{ match: { prefix: / }, direct_response: { status: ${status} } }] }
`

test('two Envoys serve their own configurations side by side, and end', { skip }, async () => {
  let url: string
  {
    await using first = await startEnvoy(answering(418))
    await using second = await startEnvoy(answering(204))
    url = `http://127.0.0.1:${await first.port('http')}`
    assert.equal((await fetch(url)).status, 418)
    assert.equal((await fetch(`http://127.0.0.1:${await second.port('http')}`)).status, 204)
    await assert.rejects(first.port('absent'), /no listener absent, only http/)
  }
  await assert.rejects(fetch(url))
})

test('an invalid configuration is reported in Envoy’s words', { skip }, async () => {
  await assert.rejects(startEnvoy('no_such_field: 1'), /envoy ended .*no_such_field/s)
})
