import assert from 'node:assert/strict'
import { mkdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { jetstreamManager } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import { connectBus, provision } from '@tollward/bus'
import { contract, DEAD_LETTER_STREAM, FINDING_STREAM } from '@tollward/contracts'
import { AlertRaisedSchema } from '@tollward/contracts/detection'
import { eventually, freePort, requires, startNatsServer, startService, temporaryDirectory } from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { alert } from './test-alert.ts'

const skip = await requires({ tools: ['nats-server'] })

const alertRaised = contract(AlertRaisedSchema)

async function startStack() {
  await using stack = new AsyncDisposableStack()
  const nats = stack.use(await startNatsServer())
  const directory = stack.use(await temporaryDirectory()).path
  const connection = stack.adopt(await connect({ servers: nats.url }), (open) => open.close())
  await provision(connection)
  const log = pino({ level: 'silent' })
  const bus = stack.use(await connectBus({ servers: nats.url, name: 'test', log, registry: new Registry() }))
  const manager = await jetstreamManager(connection)
  const file = join(directory, 'findings', 'findings.jsonl')
  await mkdir(join(directory, 'findings'))
  const router = stack.use(
    await startService('alert-router', {
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_FINDINGS_FILE: file,
    }),
  )
  const owned = stack.move()
  return {
    bus,
    directory,
    file,
    router,
    raise: (alertId: string, id = alertId) =>
      bus.publish(alertRaised, create(AlertRaisedSchema, { alert: alert({ alertId }) }), { id }),
    messagesIn: async (stream: string) => (await manager.streams.info(stream)).state.messages,
    uids: async () => {
      const lines = (await readFile(file, 'utf8')).split('\n').slice(0, -1)
      return lines.map((line): string => JSON.parse(line).finding_info.uid)
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

test('an alert that comes twice, also over a kill, is one finding and one line', { skip }, async () => {
  await using stack = await startStack()
  const { raise, router, uids, messagesIn } = stack
  await raise('a')
  await eventually(async () => (await messagesIn('ALERTS')) === 0, { what: 'the first is acknowledged' })
  await router.kill()
  // Under another event id the queue takes it again, as it does when the publisher's retry comes after its window.
  await raise('a', 'a again')
  await raise('b')
  await router.start()
  await eventually(async () => (await messagesIn('ALERTS')) === 0, { what: 'all are acknowledged' })
  assert.deepEqual(await uids(), ['a', 'b'])
  assert.equal(await messagesIn(FINDING_STREAM), 2)
})

test('while the file cannot be written the alert stays in the queue and the service says so; then it is written', {
  skip,
}, async () => {
  await using stack = await startStack()
  const { raise, router, uids, messagesIn, file, directory } = stack
  const folder = join(directory, 'findings')
  await raise('a')
  await eventually(async () => (await messagesIn('ALERTS')) === 0, { what: 'the first is acknowledged' })
  await router.stop()
  // A file where its folder was: nothing can be opened below it, by root neither.
  await rename(folder, `${folder}.away`)
  await mkdir(folder)
  await router.start()
  await rm(folder, { recursive: true })
  await writeFile(folder, '')
  await raise('b')
  await eventually(async () => (await fetch(`${router.healthUrl}/healthz/ready`)).status === 503, { what: 'not ready' })
  const metrics = await (await fetch(`${router.healthUrl}/metrics`)).text()
  assert.match(metrics, /^tollward_router_file_failures_total [1-9]/m)
  assert.equal(await messagesIn('ALERTS'), 1)
  assert.equal(await messagesIn(DEAD_LETTER_STREAM), 0)
  await rm(folder)
  await rename(`${folder}.away`, folder)
  await eventually(async () => (await messagesIn('ALERTS')) === 0, { what: 'the second is written', timeoutMs: 20_000 })
  assert.deepEqual(await uids(), ['a', 'b'])
  assert((await stat(file)).size > 0)
})

test('bytes that are no alert, and an alert without an id, become dead letters; the next one is handled', {
  skip,
}, async () => {
  await using stack = await startStack()
  const { raise, bus, uids, messagesIn } = stack
  await bus.publishBytes(alertRaised.subject, Buffer.from('not a protobuf'))
  await bus.publish(alertRaised, create(AlertRaisedSchema, {}))
  await raise('', 'without an id')
  await raise('a')
  await eventually(async () => (await messagesIn('ALERTS')) === 0, { what: 'all are acknowledged' })
  assert.equal(await messagesIn(DEAD_LETTER_STREAM), 3)
  assert.deepEqual(await uids(), ['a'])
})
