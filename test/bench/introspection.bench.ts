import { freePort } from '@tollward/testkit'
import { startIdentity } from '../scenario/identity.ts'
import { BARE_CLIENT, startBareProvider } from './bare-process.ts'
import { type Contender, type ContestRow, contest, type Effort, FULL } from './contest.ts'
import { GENERATOR_CORE, moveTo, SERVER_CORE } from './cores.ts'
import { natsProcess } from './cpu.ts'
import { formPost, sendAll, type Target } from './http-load.ts'

export const name = 'introspection: token-introspector beside a bare oidc-provider with its memory adapter'

/** Asked for in turn; the bare provider's memory holds a thousand values. */
const KNOWN_TOKENS = 200
/** More than can be asked for in one turn, so that none is asked for twice. */
const FRESH_TOKENS_PER_MS = 10
const ISSUING_CONNECTIONS = 16
const ACTIVE = Buffer.from('"active":true')
const OK = Buffer.from('HTTP/1.1 200')

/** One server's address, and the credentials that it knows. */
interface Server {
  readonly tokenPort: number
  readonly introspectionPort: number
  readonly introspectionPath: string
  readonly credentials: { readonly clientId: string; readonly clientSecret: string }
}

/**
 * Answers of RFC 7662 a second, each asked for by POST with client_secret_basic. The server that is asked has one core, the
 * generator of load the other. "Not cached": every token is asked for once, so each answer comes from auth-issuer over NATS;
 * then nats-server is on the first core too, and auth-issuer on that of the generator.
 */
export async function run(effort: Effort = FULL): Promise<{ rows: ContestRow[] }> {
  await using resources = new AsyncDisposableStack()
  moveTo(SERVER_CORE)
  const barePort = await freePort()
  const bareProcess = resources.use(await startBareProvider(barePort))
  const before = (program: string) => moveTo(program === 'auth-issuer' ? GENERATOR_CORE : SERVER_CORE)
  const identity = resources.use(await startIdentity({ sync: 'always', before }))
  moveTo(GENERATOR_CORE)
  const clientSecret = await identity.register(BARE_CLIENT.clientId, {
    grants: ['client_credentials'],
    scopes: ['orders'],
    tokenLifetime: '1h',
  })
  const bare: Server = {
    tokenPort: barePort,
    introspectionPort: barePort,
    introspectionPath: '/token/introspection',
    credentials: BARE_CLIENT,
  }
  const ours: Server = {
    tokenPort: identity.issuerPort,
    introspectionPort: identity.introspectionPort,
    introspectionPath: '/introspect',
    credentials: { clientId: BARE_CLIENT.clientId, clientSecret },
  }
  const { introspector, issuer } = identity
  const processes = {
    'token-introspector': introspector.pid,
    'auth-issuer': issuer.pid,
    ...natsProcess(identity),
  }
  const bareTarget = cycled(bare, await issue(bare, KNOWN_TOKENS))
  const cachedTarget = cycled(ours, await issue(ours, KNOWN_TOKENS))
  const contenders: Contender[] = [
    { what: 'bare oidc-provider, memory adapter', processes: { provider: bareProcess.pid }, target: () => bareTarget },
    { what: 'token-introspector, cached', processes, target: () => cachedTarget },
    {
      what: 'token-introspector, not cached',
      processes,
      target: async () => once(ours, await issue(ours, Math.max(effort.turnMs, effort.warmUpMs) * FRESH_TOKENS_PER_MS)),
    },
  ]
  return { rows: await contest(contenders, effort) }
}

async function issue({ tokenPort, credentials }: Server, count: number): Promise<string[]> {
  const request = formPost(tokenPort, '/token', credentials, { grant_type: 'client_credentials', scope: 'orders' })
  const tokens: string[] = []
  const target: Target = {
    port: tokenPort,
    next: () => request,
    accepts: (answer) => answer.subarray(0, OK.length).equals(OK),
  }
  await sendAll(target, ISSUING_CONNECTIONS, count, (answer) => {
    const token = /"access_token":"([\w-]+)"/.exec(answer.toString('latin1'))?.[1]
    if (token !== undefined) tokens.push(token)
  })
  return tokens
}

function questions({ introspectionPort, introspectionPath, credentials }: Server, tokens: readonly string[]): Buffer[] {
  return tokens.map((token) => formPost(introspectionPort, introspectionPath, credentials, { token }))
}

const accepts = (answer: Buffer) => answer.includes(ACTIVE)

function cycled(server: Server, tokens: readonly string[]): Target {
  const requests = questions(server, tokens)
  let sent = 0
  const next = () => requests[sent++ % requests.length] ?? Buffer.alloc(0)
  return { port: server.introspectionPort, next, accepts }
}

function once(server: Server, tokens: readonly string[]): Target {
  const requests = questions(server, tokens)
  const next = () => {
    const request = requests.pop()
    if (!request) throw new Error('every token was asked for; issue more for each turn')
    return request
  }
  return { port: server.introspectionPort, next, accepts }
}
