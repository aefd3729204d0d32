import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { create } from '@bufbuild/protobuf'
import { type JetStreamManager, jetstreamManager } from '@nats-io/jetstream'
import { createUser, type KeyPair } from '@nats-io/nkeys'
import { connect, type NatsConnection, nkeyAuthenticator } from '@nats-io/transport-node'
import { type Bus, connectBus, permissionsOf, provision } from '@tollward/bus'
import { bucketContract, contract } from '@tollward/contracts'
import { type Alert, AlertRaisedSchema } from '@tollward/contracts/detection'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { BlockDecidedSchema, BlockLiftedSchema, BlockSchema } from '@tollward/contracts/enforcement'
import { type Flow, FlowObservedSchema } from '@tollward/contracts/sensor'
import { documentKey } from '@tollward/documents'
import { freePort, type Service, startNatsServer, startService, temporaryDirectory } from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { batch } from './test-flows.ts'

const SERVICES = ['sensor-ingest', 'alert-router'] as const

/** The blocks' audit as it was published, in order. */
type Audit = { decided: string[]; lifted: { cause: number; revision: bigint }[] }

/** A provisioned nats-server in which each service has its own credential, as in operation, and a bus that may do all. */
export interface Stack extends AsyncDisposable {
  readonly bus: Bus
  readonly connection: NatsConnection
  readonly manager: JetStreamManager
  readonly directory: string
  start(name: (typeof SERVICES)[number], env?: NodeJS.ProcessEnv): Promise<Service>
  /** Publishes flows as the sensor of node-a does, and waits until the stream has them. */
  observe(flows: Flow[]): Promise<void>
  applySettings(name: string, spec: string): Promise<void>
  /** Takes alerts from the queue, in place of alert-router. */
  takeAlerts(): Promise<Alert[]>
  readAudit(): Promise<Audit>
}

export async function startStack(): Promise<Stack> {
  const stack = new AsyncDisposableStack()
  try {
    const keys = new Map(['test', ...SERVICES].map((name) => [name, createUser()]))
    const keyOf = (name: string): KeyPair => keys.get(name) ?? createUser()
    const seedOf = (name: string) => new TextDecoder().decode(keyOf(name).getSeed())
    const directory = stack.use(await temporaryDirectory()).path
    const users = SERVICES.map((name) => {
      const { publish, subscribe } = permissionsOf(name)
      return {
        nkey: keyOf(name).getPublicKey(),
        permissions: { publish: { allow: publish }, subscribe: { allow: subscribe } },
      }
    })
    const authorization = { users: [{ nkey: keyOf('test').getPublicKey() }, ...users] }
    const nats = stack.use(await startNatsServer({ config: JSON.stringify({ authorization }) }))
    const authenticator = nkeyAuthenticator(keyOf('test').getSeed())
    const connection = stack.adopt(await connect({ servers: nats.url, authenticator }), (open) => open.close())
    await provision(connection)
    const log = pino({ level: 'silent' })
    const registry = new Registry()
    const bus = stack.use(
      await connectBus({ servers: nats.url, name: 'test', nkeySeed: seedOf('test'), log, registry }),
    )
    for (const name of SERVICES) await writeFile(join(directory, `${name}.nk`), seedOf(name), { mode: 0o600 })
    let sequence = 0
    const owned = stack.move()
    return {
      bus,
      connection,
      manager: await jetstreamManager(connection),
      directory,
      start: async (name, env = {}) => {
        const service = await startService(name, {
          TOLLWARD_NATS_URL: nats.url,
          TOLLWARD_NATS_NKEY_FILE: join(directory, `${name}.nk`),
          TOLLWARD_HEALTH_PORT: String(await freePort()),
          ...env,
        })
        owned.use(service)
        return service
      },
      observe: async (flows) => {
        sequence += 1
        await bus.publish(contract(FlowObservedSchema), batch(sequence, flows, Date.now()), { key: 'node-a' })
      },
      applySettings: async (name, spec) => {
        const yaml = `apiVersion: tollward.dev/v1\nkind: DetectorSettings\nmetadata: { name: ${name} }\nspec: ${spec}\n`
        const stored = create(StoredDocumentSchema, { format: 1, kind: 'DetectorSettings', name, yaml })
        await bus.bucket(bucketContract(StoredDocumentSchema)).put(documentKey('DetectorSettings', name), stored)
      },
      takeAlerts: async () => {
        const alerts: Alert[] = []
        const take = await bus.consume('alert-router', contract(AlertRaisedSchema), ({ alert }) => {
          if (alert) alerts.push(alert)
          return 'done'
        })
        owned.use(take)
        return alerts
      },
      readAudit: async () => {
        const audit: Audit = { decided: [], lifted: [] }
        owned.use(
          await bus.follow(contract(BlockDecidedSchema), 'beginning', ({ block }) => {
            audit.decided.push(block?.decidedBy ?? '')
          }),
        )
        owned.use(
          await bus.follow(contract(BlockLiftedSchema), 'beginning', ({ cause, revision }) => {
            audit.lifted.push({ cause, revision })
          }),
        )
        return audit
      },
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    }
  } catch (error) {
    await stack.disposeAsync()
    throw error
  }
}

export const blocks = bucketContract(BlockSchema)
