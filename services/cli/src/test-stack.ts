import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { text as textOf } from 'node:stream/consumers'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { connect } from '@nats-io/transport-node'
import { type Bus, connectBus, type Implementation, provision } from '@tollward/bus'
import { ConductService, TreasuryService } from '@tollward/contracts/payment'
import {
  GrantService,
  IntrospectorService,
  IssuerService,
  KeyService,
  RegistrationService,
  UserService,
} from '@tollward/contracts/token'
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
export const MADE_PASSWORD = 'made-pa55word'
export const INVITATION = 'made-invitation'
export const HASH = 'ab'.repeat(32)

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
  stack.use(bus.serve(UserService, usersWith(state.asked)))
  stack.use(bus.serve(GrantService, grantsWith(state.asked)))
  stack.use(bus.serve(KeyService, keys))
  stack.use(bus.serve(RegistrationService, registrationsWith(state.asked)))
  stack.use(bus.serve(TreasuryService, treasuryWith(state.asked)))
  stack.use(bus.serve(ConductService, conductWith(state.asked)))

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

const ADA = { subject: 'subject-of-ada', name: 'ada', enabled: true, createdAt: timestampFromMs(0) }

function usersWith(asked: string[]): Implementation<typeof UserService> {
  return {
    createUser: async ({ name, password }) => {
      asked.push(`createUser ${name} ${password}`)
      return { user: { ...ADA, name }, password: password === '' ? MADE_PASSWORD : '' }
    },
    listUsers: async () => ({ users: [ADA] }),
    setPassword: async ({ name, password }) => {
      asked.push(`setPassword ${name} ${password}`)
      return { password: password === '' ? MADE_PASSWORD : '' }
    },
    setUserEnabled: async ({ name, enabled }) => {
      asked.push(`setUserEnabled ${name} ${enabled}`)
      return { user: { ...ADA, enabled } }
    },
    deleteUser: async ({ name }) => {
      asked.push(`deleteUser ${name}`)
      return {}
    },
  }
}

function grantsWith(asked: string[]): Implementation<typeof GrantService> {
  return {
    listSessions: async ({ subject }) => ({
      sessions: [
        { sessionHash: HASH, subject: ADA.subject, clientIds: ['shop', 'mail'] },
        { sessionHash: 'cd', subject: 'of-nobody-any-more' },
      ].filter((session) => subject === '' || session.subject === subject),
    }),
    endSession: async ({ sessionHash }) => {
      asked.push(`endSession ${sessionHash}`)
      return { ended: sessionHash === HASH }
    },
    listGrants: async ({ subject, clientId }) => {
      asked.push(`listGrants ${subject} ${clientId}`)
      return { grants: [{ grantHash: HASH, subject: ADA.subject, clientId: 'shop', scopes: ['orders'] }] }
    },
  }
}

const HOUR_MS = 3_600_000

const keys: Implementation<typeof KeyService> = {
  listKeys: async () => ({ keys: [keyAt('old', -2 * HOUR_MS, -HOUR_MS), keyAt('now', -HOUR_MS)] }),
  rotateKeys: async () => ({ keys: [keyAt('now', -HOUR_MS, HOUR_MS), keyAt('next', HOUR_MS)] }),
}

/** A key that signs from then on, and until then, relative to now. */
function keyAt(kid: string, fromMs: number, untilMs?: number) {
  const at = (ms: number) => timestampFromMs(Date.now() + ms)
  const until = untilMs === undefined ? {} : { signsUntil: at(untilMs) }
  return { kid, algorithm: 'ES256', createdAt: timestampFromMs(0), signsFrom: at(fromMs), ...until }
}

function registrationsWith(asked: string[]): Implementation<typeof RegistrationService> {
  return {
    listRegisteredClients: async () => ({
      clients: [{ clientId: 'r1', clientName: 'Stranger', grants: ['client_credentials'], selfRegistered: true }],
      leftOut: 3,
    }),
    removeRegisteredClient: async ({ clientId }) => {
      asked.push(`removeRegisteredClient ${clientId}`)
      return { removed: clientId === 'r1' }
    },
    createInitialAccessToken: async ({ lifetimeSeconds, registrationsMax, scopes }) => {
      asked.push(`createInitialAccessToken ${lifetimeSeconds} ${registrationsMax} ${scopes}`)
      return { token: INVITATION, expiresAt: timestampFromMs(0) }
    },
  }
}

/** Three payments, a page each; the name of the plan is what a spreadsheet would run. */
function treasuryWith(asked: string[]): Implementation<typeof TreasuryService> {
  const unused = async () => {
    throw new AppError('internal', 'no command here asks this')
  }
  return {
    ...{ exportLedger: unused, importLedger: unused },
    // Two blocks a call, of four; the ledger lacks what is in block 1.
    reconcileBlocks: async ({ fromHeight }) => {
      const missing = { kind: 'missing-in-ledger', txid: HASH, chainSats: 5n, blockHeight: 1 }
      const found = { chainSats: fromHeight === 1 ? 5n : 300n, ledgerSats: fromHeight === 1 ? 0n : 300n }
      const differences = fromHeight === 1 ? [missing] : []
      return { blocks: 2, nextHeight: fromHeight < 2 ? fromHeight + 2 : 0, ...found, differences }
    },
    listPayments: async ({ pageToken, clientId }) => {
      const number = Number(pageToken || '1')
      const payment = { txid: HASH, vout: number, amountSats: BigInt(number) * 100n, state: 'settled', clientId }
      return { payments: [{ ...payment, plan: '=1+1' }], nextPageToken: number === 3 ? '' : String(number + 1) }
    },
    getBooks: async () => ({
      receivedSats: 600n,
      boughtSats: 600n,
      nextAddressIndex: 4,
      descriptor: 'wpkh(…)#c',
      tipHeight: 3,
    }),
    listCredits: async ({ clientId }) => ({ credits: [{ clientId: clientId || 'shop', balanceSats: -5n }] }),
    adjustCredit: async ({ adjustmentId, clientId, amountSats, reason, operator, txid, vout }) => {
      asked.push(`adjustCredit ${clientId} ${amountSats} ${reason} ${operator} ${txid}:${vout} ${adjustmentId.length}`)
      return { credit: { clientId, balanceSats: amountSats } }
    },
  }
}

function conductWith(asked: string[]): Implementation<typeof ConductService> {
  const standing = { conduct: { clientId: 'shop', violations: 2.04, paidSats: 9n }, score: 700, reasons: ['Paid.'] }
  return {
    listConduct: async ({ clientId, limit }) => {
      asked.push(`listConduct ${clientId} ${limit}`)
      return { standings: [standing] }
    },
    overrideConduct: async ({ clientId, score, until, reason, operator }) => {
      asked.push(`overrideConduct ${clientId} ${score} ${until === undefined ? 'for good' : 'for a while'} ${reason}`)
      const override = score === undefined ? {} : { override: { score, reason, operator } }
      return { standing: { ...standing, conduct: { clientId, ...override }, score: score ?? 700 } }
    },
  }
}
