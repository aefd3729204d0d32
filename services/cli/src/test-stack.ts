import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { text as textOf } from 'node:stream/consumers'
import { connect } from '@nats-io/transport-node'
import { type Bus, connectBus, provision } from '@tollward/bus'
import { IntrospectorService, IssuerService } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { freePort, type Service, startNatsServer, startService, temporaryDirectory } from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'

/** A real nats-server and admin-api, and an issuer that plays the rest. */
export interface TestStack extends AsyncDisposable {
  readonly bus: Bus
  readonly adminApi: Service
  readonly directory: string
  readonly operatorFile: string
  /** Scopes of the tokens that were asked for. */
  readonly scopes: string[]
  /** What auth-issuer was asked on the bus. */
  readonly asked: string[]
  /** Whether the one service that can run is ready. */
  ready: boolean
}

/** Letters that basic authentication mangles unless they are encoded. */
const SECRET = 's:e+c%r/et é'

export const CLIENT_SECRET = 'made-for-this-test'

export async function startTestStack(): Promise<TestStack> {
  await using stack = new AsyncDisposableStack()
  const directory = stack.use(await temporaryDirectory()).path
  const nats = stack.use(await startNatsServer())
  const provisioner = await connect({ servers: nats.url })
  await provision(provisioner)
  await provisioner.close()
  const log = pino({ level: 'silent' })
  const bus = stack.use(await connectBus({ servers: nats.url, name: 'tester', log, registry: new Registry() }))

  const state = { ready: true, scopes: [] as string[], asked: [] as string[] }
  const server = createServer(async (request, response) => {
    const { status, body } = await answer(
      request.url ?? '',
      request.headers.authorization,
      await textOf(request),
      issuer,
    )
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
  })
  const answer = async (url: string, authorization: string | undefined, form: string, base: string) => {
    if (url === '/ready')
      return { status: state.ready ? 200 : 503, body: { reasons: state.ready ? [] : ['is starting'] } }
    if (url !== '/token') return { status: 200, body: { issuer: base, token_endpoint: `${base}/token` } }
    const parameters = new URLSearchParams(form)
    const basic = Buffer.from(authorization?.replace('Basic ', '') ?? '', 'base64')
      .toString()
      .split(':')
      .map(decodeURIComponent)
    const wrong = basic[1] !== SECRET || parameters.get('grant_type') !== 'client_credentials'
    if (wrong) return { status: 401, body: { error: 'invalid_client' } }
    const scope = parameters.get('scope') ?? ''
    state.scopes.push(scope)
    return { status: 200, body: { access_token: `${basic[0]}-${scope}`, token_type: 'Bearer' } }
  }
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  stack.defer(async () => {
    server.closeAllConnections()
    server.close()
    await once(server, 'close')
  })
  const issuer = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  stack.use(
    bus.serve(IntrospectorService, {
      introspect: async ({ token }) => {
        const [clientId = '', scope = ''] = token.split('-')
        return { info: { active: true, clientId, scopes: [scope], audience: ['urn:tollward:admin'] } }
      },
    }),
  )
  stack.use(bus.serve(IssuerService, issuerWith(state.asked)))

  const port = await freePort()
  const adminApi = stack.use(
    await startService('admin-api', {
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_LISTEN_PORT: String(port),
      TOLLWARD_SERVICES: JSON.stringify([
        { name: 'gateway', readyUrl: `${issuer}/ready` },
        { name: 'node-sensor', off: 'needs root' },
      ]),
    }),
  )
  const operatorFile = join(directory, 'operator.json')
  const operator = { issuer, adminApi: `127.0.0.1:${port}`, clientId: 'operator', clientSecret: SECRET }
  await writeFile(operatorFile, JSON.stringify(operator), { mode: 0o600 })
  const owned = stack.move()
  const { scopes, asked } = state
  return {
    ...{ bus, adminApi, directory, operatorFile, scopes, asked },
    get ready() {
      return state.ready
    },
    set ready(ready) {
      state.ready = ready
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

function issuerWith(asked: string[]) {
  const unused = async () => {
    throw new AppError('internal', 'admin-api does not ask this')
  }
  return {
    exchange: unused,
    authenticateClient: unused,
    revoke: async ({ target }: { target: { case?: string | undefined; value?: string | undefined } }) => {
      asked.push(`revoke ${target.case} ${target.value}`)
      return { revoked: true }
    },
    replaceClientSecret: async () => ({ clientSecret: CLIENT_SECRET }),
    forgetClient: async () => ({}),
    noteClientChange: async () => ({}),
    signIntrospection: () => Promise.reject(new Error('not asked here')),
  }
}
