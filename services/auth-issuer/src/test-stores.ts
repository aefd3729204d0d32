import type { Bus } from '@tollward/bus'
import { createLog } from '@tollward/runtime'
import type { NatsServer } from '@tollward/testkit'
import type { Adapter } from 'oidc-provider'
import { Registry } from 'prom-client'
import { openClients } from './adapters/clients.ts'
import type { Accounts } from './adapters/grants.ts'
import { readMasterSecret } from './adapters/master-secret.ts'
import { oidcAdapters } from './adapters/oidc-adapter.ts'
import { openStores, type Stores } from './adapters/stores.ts'
import { issuerMetrics } from './metrics.ts'
import { applyClient, startTestBus } from './test-issuer.ts'
import { CODE_CLIENT } from './test-person.ts'

const log = createLog('test', 'silent')

/** A replica's stores, on a connection of its own. */
export interface Replica extends Stores {
  adapter(model: string): Adapter
}

/** A NATS server of its own, with what auth-issuer keeps there, for one test. */
export interface TestStores extends AsyncDisposable {
  readonly nats: NatsServer
  /** Generations of accounts, as tests want them. */
  readonly people: Map<string, { generation: string; enabled: boolean }>
  replica(wrap?: (bus: Bus) => Bus): Promise<Replica>
  /** Applies a Client document that needs no secret. */
  apply(name: string, spec?: Record<string, unknown>): Promise<void>
}

export async function startTestStores(): Promise<TestStores> {
  const resources = new AsyncDisposableStack()
  const { nats, masterSecretFile, connected } = resources.use(await startTestBus())
  const masterSecret = readMasterSecret(masterSecretFile)
  const people = new Map<string, { generation: string; enabled: boolean }>()
  const accounts: Accounts = {
    find: async (subject) => people.get(subject),
    endEverything: async (subject) => {
      const person = people.get(subject)
      if (person) people.set(subject, { ...person, generation: `${person.generation}+` })
      return person !== undefined
    },
  }
  const admin = await connected()
  return {
    nats,
    people,
    replica: async (wrap = (bus) => bus) => {
      const bus = wrap(await connected())
      const metrics = issuerMetrics(new Registry())
      const clients = resources.use(await openClients({ bus, issuer: 'http://issuer.test', operator: undefined, log }))
      const stores = openStores({ bus, masterSecret, clients, accounts, metrics })
      return { ...stores, adapter: oidcAdapters(stores) }
    },
    apply: (name, spec = {}) => applyClient(admin, name, { ...CODE_CLIENT, ...spec }),
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  }
}

/** Seconds since the epoch, as tokens count them. */
export function nowSeconds(): number {
  return Math.floor(Date.now() / 1000)
}

/** A replica's bus whose publishing of events can be made to fail. */
export function failingEvents(): { wrap: (bus: Bus) => Bus; refuse: boolean } {
  const state = {
    refuse: false,
    wrap: (bus: Bus): Bus =>
      Object.assign(Object.create(bus), {
        publish: (...args: Parameters<Bus['publish']>) =>
          state.refuse ? Promise.reject(new Error('the event is lost')) : bus.publish(...args),
      }),
  }
  return state
}
