import { freePort } from '@tollward/testkit'
import { type Identity, type SyncMode, startIdentity } from '../scenario/identity.ts'
import { BARE_CLIENT, startBareProvider } from './bare-process.ts'
import { type Contender, type ContestRow, contest, type Effort, FULL } from './contest.ts'
import { GENERATOR_CORE, moveTo, SERVER_CORE } from './cores.ts'
import { natsProcess } from './cpu.ts'
import { formPost, type Target } from './http-load.ts'

export const name = 'token: client credentials at auth-issuer beside a bare oidc-provider with its memory adapter'

const SYNC_MODES: readonly SyncMode[] = ['always', '2m (default)']
const ISSUED = Buffer.from('"access_token":')

/**
 * Tokens a second, each asked for by client credentials with client_secret_basic. auth-issuer has written each token and its
 * event before it answers; how often nats-server brings that to the disk is said in the row. auth-issuer and the bare provider
 * have one core; the generator of load and nats-server share the other.
 */
export async function run(effort: Effort = FULL): Promise<{ rows: ContestRow[] }> {
  await using resources = new AsyncDisposableStack()
  moveTo(SERVER_CORE)
  const barePort = await freePort()
  const bare = resources.use(await startBareProvider(barePort))
  const stacks: { sync: SyncMode; identity: Identity }[] = []
  for (const sync of SYNC_MODES) {
    const before = (program: string) => moveTo(program === 'auth-issuer' ? SERVER_CORE : GENERATOR_CORE)
    stacks.push({ sync, identity: resources.use(await startIdentity({ sync, before })) })
  }
  moveTo(GENERATOR_CORE)
  const bareTarget = targetOf(barePort, BARE_CLIENT)
  const contenders: Contender[] = [
    { what: 'bare oidc-provider, memory adapter', processes: { provider: bare.pid }, target: () => bareTarget },
  ]
  for (const { sync, identity } of stacks) {
    const spec = { grants: ['client_credentials'], scopes: ['orders'] }
    const clientSecret = await identity.register(BARE_CLIENT.clientId, spec)
    const target = targetOf(identity.issuerPort, { clientId: BARE_CLIENT.clientId, clientSecret })
    contenders.push({
      what: `auth-issuer, nats-server syncs: ${sync}`,
      processes: { 'auth-issuer': identity.issuer.pid, ...natsProcess(identity) },
      target: () => target,
    })
  }
  return { rows: await contest(contenders, effort) }
}

function targetOf(port: number, credentials: { clientId: string; clientSecret: string }): Target {
  const request = formPost(port, '/token', credentials, { grant_type: 'client_credentials', scope: 'orders' })
  return { port, next: () => request, accepts: (answer) => answer.includes(ISSUED) }
}
