import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { requires, startEnvoy } from '@tollward/testkit'
import { parse, parseAllDocuments } from 'yaml'
import { type AuthorizerStack, arrivedAt, ask, reasonOf, startAuthorizerStack } from './envoy-stack.ts'

const skip = await requires({ tools: ['nats-server', 'envoy'] })
const DEPLOY = resolve(import.meta.dirname, '../../deploy')

const DOCUMENTS = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: mesh }
spec:
  hosts: ["*"]
  rules:
    - { name: open, match: { path: /open }, anonymous: true }
    - { name: known, match: { path: /known }, require: { token: {} } }
    - { name: list, match: { methods: [POST], path: /graphql, graphqlOperations: [List] }, anonymous: true }
`
const LIST = JSON.stringify({ operationName: 'List', query: 'query List { a }' })

type Json = string | number | boolean | null | Json[] | { [name: string]: Json }
type Settings = { [name: string]: Json }

/** What of an extension provider of a mesh configuration counts here. */
interface Provider {
  readonly timeout: string
  readonly failOpen: boolean
  readonly statusOnError: string
  readonly includeRequestBodyInCheck?: {
    readonly maxRequestBytes: number
    readonly allowPartialMessage: boolean
    readonly packAsBytes: boolean
  }
}

/*
 * Istio itself does not run here. These Envoys have what its control plane makes of the shipped mesh configuration, with and
 * without the shipped EnvoyFilter, and its own settings of paths and headers, which are laxer than ours.
 */
describe('a real Envoy configured as Istio would', { skip }, () => {
  let stack: AuthorizerStack
  let resources: AsyncDisposableStack
  let provided: number
  let patched: number
  let withBodies: number

  before(async () => {
    resources = new AsyncDisposableStack()
    stack = resources.use(await startAuthorizerStack(DOCUMENTS))
    const start = async (provider: string, isPatched: boolean) => {
      const config = await asIstioWould(provider, isPatched, stack)
      return await resources.use(await startEnvoy(JSON.stringify(config))).port('api')
    }
    provided = await start('tollward', false)
    patched = await start('tollward', true)
    withBodies = await start('tollward-with-bodies', true)
  })
  after(() => resources.disposeAsync())

  test('every request is decided about, with and without the EnvoyFilter', async () => {
    const token = stack.neighbours.issue('mesh-client', [])
    for (const port of [provided, patched]) {
      assert.equal((await ask({ port, path: '/open' })).status, 200)
      assert.equal((await ask({ port, path: '/known', token })).status, 200)
      const before = stack.api.count()
      assert.equal(reasonOf(await ask({ port, path: '/known' })), 'token-missing')
      assert.equal(reasonOf(await ask({ port, path: '/nowhere', token })), 'no-rule')
      for (const path of ['/open%2f..%2fknown', '/open;/../known', '/open//known', '/known%00']) {
        const { status } = await ask({ port, path })
        assert.ok([400, 401, 403].includes(status), `${status} ${path}`)
      }
      const twice = await ask({ port, path: '/known', headers: { authorization: [`Bearer ${token}`, 'Bearer x'] } })
      assert.ok([400, 401].includes(twice.status), `${twice.status}`)
      assert.equal(stack.api.count(), before, 'none of them reached the API')
    }
  })

  test('identity headers of a client do not pass, also where Envoy takes underscores in names', async () => {
    for (const port of [provided, patched]) {
      for (const name of ['x-tollward-client', 'X-Tollward-Client', 'x_tollward_client', 'x-tollward_client']) {
        const answered = await ask({ port, path: '/open', headers: { [name]: ['admin', 'root'] } })
        if (answered.status === 400) continue
        const names = arrivedAt(answered).fields.map(([own]) => own.replaceAll('_', '-'))
        assert.deepEqual(
          names.filter((own) => own.startsWith('x-tollward-') && own !== 'x-tollward-decision'),
          [],
          name,
        )
      }
    }
    assert.equal((await ask({ port: patched, path: '/open', headers: { x_tollward_client: 'admin' } })).status, 400)
  })

  test('the provider with bodies sends them along whole or refuses', async () => {
    const headers = { 'content-type': 'application/json' }
    const post = (body: string) => ask({ port: withBodies, path: '/graphql', method: 'POST', body, headers })
    assert.equal((await post(LIST)).status, 200)
    assert.equal((await post(LIST.replaceAll('List', 'Drop'))).status, 401)
    assert.equal((await post(LIST + ' '.repeat(65_536))).status, 413)
  })

  test('without the authorizer nothing passes', async () => {
    await stack.authorizer.kill()
    for (const port of [provided, patched, withBodies]) assert.equal((await ask({ port, path: '/open' })).status, 503)
  })
})

async function asIstioWould(name: string, isPatched: boolean, stack: AuthorizerStack): Promise<Settings> {
  const base = await readFile(resolve(DEPLOY, 'envoy/envoy.yaml'), 'utf8')
  const config = parse(
    base
      .replace('port_value: 10000', 'port_value: 0')
      .replace('port_value: 8081', `port_value: ${stack.api.port}`)
      .replace('port_value: 9191', `port_value: ${stack.authorizerPort}`),
  )
  const manager: Settings = config.static_resources.listeners[0].filter_chains[0].filters[0].typed_config
  for (const ours of [
    'path_with_escaped_slashes_action',
    'merge_slashes',
    'common_http_protocol_options',
    'max_request_headers_kb',
    'strip_trailing_host_dot',
  ])
    delete manager[ours]
  const extAuthz = { name: 'envoy.filters.http.ext_authz', typed_config: await fromProvider(name) }
  const [, router] = manager.http_filters as Json[]
  const patches = isPatched ? await shippedPatches() : {}
  config.static_resources.listeners[0].filter_chains[0].filters[0].typed_config = {
    ...merged(manager, patches.NETWORK_FILTER ?? {}),
    http_filters: [
      SELECTING,
      { ...extAuthz, typed_config: merged(extAuthz.typed_config, patches.HTTP_FILTER ?? {}) },
      router,
    ],
  }
  return config
}

/** Istio puts this before ext_authz for a CUSTOM policy whose rule is empty: it marks every request. */
const SELECTING: Settings = {
  name: 'envoy.filters.http.rbac',
  typed_config: {
    '@type': 'type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC',
    shadow_rules_stat_prefix: 'istio_ext_authz_',
    shadow_rules: {
      action: 'DENY',
      policies: {
        'istio-ext-authz-tollward-ns[shop]-policy[tollward]-rule[0]': {
          permissions: [{ any: true }],
          principals: [{ any: true }],
        },
      },
    },
  },
}

/** The filter that Istio makes of an extension provider. */
async function fromProvider(name: string): Promise<Settings> {
  const { meshConfig } = parse(await readFile(resolve(DEPLOY, 'istio/mesh-config.yaml'), 'utf8'))
  const found = meshConfig.extensionProviders.find((provider: { name: string }) => provider.name === name)
  const { timeout, failOpen, statusOnError, includeRequestBodyInCheck: body }: Provider = found.envoyExtAuthzGrpc
  return {
    '@type': 'type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz',
    transport_api_version: 'V3',
    failure_mode_allow: failOpen,
    status_on_error: { code: Number(statusOnError) },
    grpc_service: {
      timeout,
      envoy_grpc: { cluster_name: 'authorizer', authority: 'authorizer.tollward.svc.cluster.local' },
    },
    filter_enabled_metadata: {
      filter: 'envoy.filters.http.rbac',
      path: [{ key: 'istio_ext_authz_shadow_effective_policy_id' }],
      value: { string_match: { prefix: 'istio-ext-authz-tollward' } },
    },
    ...(body && {
      with_request_body: {
        max_request_bytes: body.maxRequestBytes,
        allow_partial_message: body.allowPartialMessage,
        pack_as_bytes: body.packAsBytes,
      },
    }),
  }
}

/** What the shipped EnvoyFilter merges, by what it applies to. */
async function shippedPatches(): Promise<Readonly<Record<string, Settings>>> {
  const [document] = parseAllDocuments(await readFile(resolve(DEPLOY, 'istio/envoy-filter.yaml'), 'utf8'))
  const patches: { applyTo: string; patch: { value: { typed_config: Settings } } }[] =
    document?.toJS().spec.configPatches
  return Object.fromEntries(patches.map(({ applyTo, patch }) => [applyTo, patch.value.typed_config]))
}

/** As protobuf merges messages: fields of the second win, messages are merged. */
function merged(first: Settings, second: Settings): Settings {
  const result = { ...first }
  for (const [name, value] of Object.entries(second)) {
    const own = result[name]
    result[name] = isMessage(own) && isMessage(value) ? merged(own, value) : value
  }
  return result
}

function isMessage(value: Json | undefined): value is Settings {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
