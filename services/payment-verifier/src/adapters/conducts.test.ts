import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { connect } from '@nats-io/transport-node'
import { connectBus, provision } from '@tollward/bus'
import { eventually, requires, startNatsServer } from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { Ledger } from '../domain/ledger.ts'
import { verifierMetrics } from '../metrics.ts'
import { Conducts } from './conducts.ts'

const skip = await requires({ tools: ['nats-server'] })
const resources = new AsyncDisposableStack()
after(() => resources.disposeAsync())

async function start() {
  const nats = resources.use(await startNatsServer())
  const provisioner = await connect({ servers: nats.url })
  await provision(provisioner)
  await provisioner.close()
  const registry = new Registry()
  const open = async (replica = new Registry()) => {
    const options = { servers: nats.url, log: pino({ level: 'silent' }), registry: new Registry() }
    const bus = resources.use(await connectBus({ ...options, name: 'payment-verifier' }))
    return resources.use(await Conducts.open(bus, new Ledger(), verifierMetrics(replica)))
  }
  const [one, other] = [await open(registry), await open()]
  const changes = async (result: string) => {
    const { values } = (await registry.getSingleMetric('tollward_payment_conduct_changes_total')?.get()) ?? {
      values: [],
    }
    return values.find(({ labels }) => labels.result === result)?.value ?? 0
  }
  return { nats, one, other, changes }
}

const started = skip ? undefined : await start()

test('replicas that write of a client at the same time lose nothing of what either counted', { skip }, async () => {
  assert.ok(started)
  const { one, other } = started
  for (let round = 1; round <= 4; round += 1) {
    // Both write from what they know when the same time is over.
    await Promise.all([one.count('c', { violations: 1 }), other.count('c', { violations: 2 })])
    const known = () => [one, other].every((each) => Math.abs((each.of('c')?.violations ?? 0) - 3 * round) < 0.01)
    await eventually(known, { what: `both know all of round ${round}` })
  }
  const word = { score: 7, reason: 'r', operator: 'o' }
  await Promise.all([one.override('c', word), other.override('d', word), one.count('d', { alerts: 1 })])
  await eventually(() => other.of('c')?.override?.score === 7, { what: 'the other replica knows the override' })
  await eventually(() => one.of('d')?.override?.score === 7 && one.of('d')?.alerts !== 0, { what: 'both are kept' })
})

test('what cannot be written is told to whoever can repeat it, and counted', { skip }, async () => {
  assert.ok(started)
  const { nats, one, changes } = started
  await nats.stop()
  one.note('f', { violations: 1 })
  await assert.rejects(one.count('f', { violations: 1 }))
  assert.equal(await changes('failed'), 1)
  await nats.start()
  await eventually(
    async () => {
      await one.count('f', { violations: 1 })
      return true
    },
    { what: 'it is written again', timeoutMs: 20_000 },
  )
})
