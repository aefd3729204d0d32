import { readFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { type Neighbours, startNeighbours } from '@tollward/decision/testing'
import { type Envoy, freePort, type Service, startEnvoy, startService, temporaryDirectory } from '@tollward/testkit'
import { parse } from 'yaml'
import { type Contender, type ContestRow, contest, type Effort, FULL } from './contest.ts'
import { GENERATOR_CORE, moveTo, SERVER_CORE } from './cores.ts'
import { sendAll, type Target } from './http-load.ts'

export const name = 'envoy'

const RULES = 1000
const TOKENS = 1000
const INTERNAL_TOKEN_LENGTH = 600
const HOUR_MS = 3_600_000
const LEARNING_AT_ONCE = 16
const CONFIG = resolve(import.meta.dirname, '../../deploy/envoy/envoy.yaml')

const DOCUMENTS = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: bench }
spec:
  hosts: ["api.example.com"]
  rules:
${Array.from({ length: RULES }, (_, index) => `    - { name: r${index}, match: { methods: [GET], path: "/orders/${index}/{id}" }, require: { token: { scopes: [orders] } }, limit: { requests: 1000000, perSeconds: 1, by: client } }`).join('\n')}
`

/**
 * Requests through a real Envoy with the shipped configuration, beside the same Envoy without ext_authz, and through one that asks over
 * a unix socket. Envoy answers by itself, so that no API is measured. Envoy and authorizer share one core, the generator has the other:
 * what a request costs more is what asking costs Envoy, and what deciding costs the authorizer.
 */
export async function run(effort: Effort = FULL): Promise<{ rows: ContestRow[] }> {
  await using resources = new AsyncDisposableStack()
  moveTo(GENERATOR_CORE)
  const neighbours = resources.use(await startNeighbours())
  await neighbours.apply(DOCUMENTS)
  const next = requests(neighbours)
  const directory = resources.use(await temporaryDirectory())
  const [port, socket] = [await freePort(), join(directory.path, 'authorizer.sock')]
  moveTo(SERVER_CORE)
  const overTcp = resources.use(await startAuthorizer(neighbours, { TOLLWARD_GRPC_PORT: String(port) }))
  const overSocket = resources.use(await startAuthorizer(neighbours, { TOLLWARD_GRPC_SOCKET: socket }))
  const start = async (authorizer?: unknown) =>
    resources.use(await startEnvoy(JSON.stringify(await answering(authorizer))))
  const [alone, tcp, unix] = [
    await start(),
    await start({ socket_address: { address: '127.0.0.1', port_value: port } }),
    await start({ pipe: { path: socket } }),
  ]
  moveTo(GENERATOR_CORE)
  const contenders = [
    await contender('Envoy without ext_authz', next, alone),
    await contender('Envoy, authorizer over TCP', next, tcp, overTcp),
    await contender('Envoy, authorizer over a unix socket', next, unix, overSocket),
  ]
  // So that no token is looked up while it is measured.
  for (const { target } of contenders) await sendAll(await target(), LEARNING_AT_ONCE, TOKENS, () => {})
  const one = { ...effort, connections: 1 }
  const many = await contest(contenders, effort)
  const single = await contest(contenders, one)
  return {
    rows: [
      ...many.map((row) => ({ ...row, what: `${row.what}, ${effort.connections} at once` })),
      ...single.map((row) => ({ ...row, what: `${row.what}, one at a time` })),
    ],
  }
}

async function startAuthorizer({ nats }: Neighbours, env: NodeJS.ProcessEnv): Promise<Service> {
  return await startService('authorizer', {
    TOLLWARD_NATS_URL: nats.url,
    TOLLWARD_HEALTH_PORT: String(await freePort()),
    TOLLWARD_HTTP_PORT: String(await freePort()),
    TOLLWARD_GRPC_PORT: String(await freePort()),
    ...env,
  })
}

/** The shipped configuration, with an answer instead of the API, asking the authorizer at an address or nobody. */
async function answering(authorizer: unknown): Promise<unknown> {
  const config = parse((await readFile(CONFIG, 'utf8')).replace('port_value: 10000', 'port_value: 0'))
  const [listener] = config.static_resources.listeners
  const manager = listener.filter_chains[0].filters[0].typed_config
  const answer = { direct_response: { status: 200, body: { inline_string: 'ok' } } }
  manager.route_config.virtual_hosts[0].routes = [{ match: { prefix: '/' }, ...answer }]
  const [, asked] = config.static_resources.clusters
  if (authorizer === undefined) manager.http_filters = manager.http_filters.slice(1)
  else asked.load_assignment.endpoints = [{ lb_endpoints: [{ endpoint: { address: authorizer } }] }]
  return config
}

async function contender(what: string, next: () => Buffer, envoy: Envoy, authorizer?: Service): Promise<Contender> {
  const port = await envoy.port('api')
  const target: Target = { port, next, accepts: (answer) => answer.subarray(0, 12).equals(OK) }
  const processes = { envoy: envoy.pid, ...(authorizer && { authorizer: authorizer.pid }) }
  return { what, processes, target: () => target }
}

const OK = Buffer.from('HTTP/1.1 200')

/** Requests of the size that clients send, each with the next token to the next rule. */
function requests(neighbours: Neighbours): () => Buffer {
  const internalToken = 'x'.repeat(INTERNAL_TOKEN_LENGTH)
  const internalTokenExpiresAt = timestampFromMs(Date.now() + HOUR_MS)
  const issued = { internalToken, internalTokenExpiresAt, expiresAt: internalTokenExpiresAt }
  const all = Array.from({ length: TOKENS }, (_, index) => {
    const token = neighbours.issue(`client-${index % 100}`, ['orders'], issued)
    const lines = [
      `GET /orders/${index % RULES}/42?page=2 HTTP/1.1`,
      'host: api.example.com',
      'user-agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36',
      'accept: application/json',
      'accept-encoding: gzip, deflate, br',
      `authorization: Bearer ${token}`,
    ]
    return Buffer.from(`${lines.join('\r\n')}\r\n\r\n`)
  })
  let sent = 0
  return () => all[sent++ % all.length] ?? Buffer.alloc(0)
}
