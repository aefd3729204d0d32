import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { jetstream } from '@nats-io/jetstream'
import { createUser } from '@nats-io/nkeys'
import { connect, type NatsConnection, nkeyAuthenticator } from '@nats-io/transport-node'
import { ACCESS, connectBus, inboxPrefix, provision } from '@tollward/bus'
import { broadcastContract, bucketContract, contract, FINDING_SUBJECT } from '@tollward/contracts'
import { RateUsedSchema } from '@tollward/contracts/decision'
import { AlertRaisedSchema } from '@tollward/contracts/detection'
import { BlockSchema } from '@tollward/contracts/enforcement'
import { ConductSchema, ConductService } from '@tollward/contracts/payment'
import { CallObservedSchema } from '@tollward/contracts/sensor'
import {
  IntrospectorService,
  LoginFailedSchema,
  RefreshReusedSchema,
  TokenRevokedSchema,
} from '@tollward/contracts/token'
import { eventually, requires, startNatsServer } from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { natsConfig, SIEM_API_PREFIX, SIEM_DURABLE } from './nats-config.ts'

const skip = await requires({ tools: ['nats-server'] })
const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes)
const log = pino({ level: 'silent' })

const rates = broadcastContract(RateUsedSchema)
const RATE_USED = rates.subject

const names = [...Object.keys(ACCESS), 'provisioner', 'siem']

async function startSecuredServer() {
  const keys = new Map(names.map((name) => [name, createUser()]))
  const publicKey = (name: string) => keys.get(name)?.getPublicKey() ?? ''
  const services = Object.fromEntries(Object.keys(ACCESS).map((name) => [name, publicKey(name)]))
  const config = natsConfig({
    host: '127.0.0.1',
    port: -1,
    storeDirectory: '/tmp/replaced-by-the-command-line',
    users: { services, provisioner: publicKey('provisioner'), siem: publicKey('siem') },
  })
  const { jetstream: settings, ...rest } = JSON.parse(config)
  const nats = await startNatsServer({
    config: JSON.stringify({ ...rest, jetstream: { ...settings, store_dir: undefined } }),
  })
  const open: NatsConnection[] = []
  const seed = (name: string) => keys.get(name)?.getSeed() ?? new Uint8Array()
  const connectAs = async (name: string) => {
    const connection = await connect({
      servers: nats.url,
      authenticator: nkeyAuthenticator(seed(name)),
      inboxPrefix: inboxPrefix(name),
    })
    open.push(connection)
    return connection
  }
  await provision(await connectAs('provisioner'))
  return {
    nats,
    connectAs,
    bus: (name: string) =>
      connectBus({ servers: nats.url, name, nkeySeed: text(seed(name)), log, registry: new Registry() }),
    [Symbol.asyncDispose]: async () => {
      for (const connection of open) await connection.close()
      await nats[Symbol.asyncDispose]()
    },
  }
}

/** What the server answered to something forbidden; empty: it let it pass. */
async function violation(connection: NatsConnection, attempt: () => void): Promise<string> {
  const refusals: string[] = []
  const statuses = connection.status()
  const listening = (async () => {
    for await (const status of statuses) if (status.type === 'error') refusals.push(String(status.error))
  })()
  attempt()
  // The server answers in order: a refusal comes before the answer to this.
  await connection.flush()
  await connection.close()
  await listening
  return refusals.join()
}

test('a credential may not publish on the subjects of another service, nor write its buckets', { skip }, async () => {
  await using server = await startSecuredServer()
  const forbidden: [string, string][] = [
    ['node-sensor', '$KV.blocks.aa-128'],
    ['gateway', '$KV.passes.x'],
    ['gateway', 'tollward.token.v1.token.revoked'],
    ['authorizer', 'tollward.ledger.v1.entry.appended'],
    ['alert-router', '$KV.documents.x'],
    ['sensor-ingest', 'tollward.siem.v1.finding.published.high'],
    ['admin-api', '$JS.API.STREAM.DELETE.LEDGER'],
    ['payment-verifier', '$JS.API.STREAM.PURGE.LEDGER'],
    ['gateway', '$JS.API.CONSUMER.CREATE.LEDGER.x.tollward.ledger.v1.>'],
    ['alert-router', '$JS.API.CONSUMER.MSG.NEXT.OBSERVED.sensor-ingest-flows'],
    ['gateway', 'auth-issuer.v1.rpc.exchange'],
    ['token-introspector', 'auth-issuer.v1.rpc.rotate_keys'],
    ['token-introspector', 'auth-issuer.v1.rpc.list_users'],
    ['token-introspector', 'auth-issuer.v1.rpc.revoke'],
    ['payment-verifier', 'auth-issuer.v1.rpc.exchange'],
    ['gateway', '$KV.conduct.x'],
    ['admin-api', '$KV.conduct.x'],
    ['authorizer', 'payment-verifier.v1.rpc.override_conduct'],
    ['gateway', 'payment-verifier.v1.rpc.adjust_credit'],
    ['siem', '$JS.API.CONSUMER.MSG.NEXT.ALERTS.alert-router'],
    ['token-introspector', RATE_USED],
    ['node-sensor', RATE_USED],
    ['payment-verifier', RATE_USED],
    ['gateway', `${RATE_USED}.x`],
    ['siem', RATE_USED],
    ['siem', `${SIEM_API_PREFIX}.STREAM.MSG.GET.FINDINGS`],
    ['siem', 'tollward.detection.v1.alert.raised'],
  ]
  for (const [name, subject] of forbidden) {
    const connection = await server.connectAs(name)
    assert.match(
      await violation(connection, () => connection.publish(subject, 'x')),
      /Permissions Violation for Publish/,
      `${name} → ${subject}`,
    )
  }
})

test('a credential may not hear the subjects or replies of others', { skip }, async () => {
  await using server = await startSecuredServer()
  const forbidden: [string, string][] = [
    ['gateway', '>'],
    ['gateway', '_INBOX.>'],
    ['gateway', `${inboxPrefix('authorizer')}.>`],
    ['alert-router', 'token-introspector.v1.rpc.*'],
    ['node-sensor', 'auth-issuer.v1.rpc.*'],
    ['sensor-ingest', RATE_USED],
    ['admin-api', RATE_USED],
    ['siem', RATE_USED],
    ['gateway', 'tollward.decision.v1.>'],
    ['siem', '>'],
    ['siem', `${inboxPrefix('token-introspector')}.>`],
    ['siem', 'tollward.token.v1.>'],
  ]
  for (const [name, subject] of forbidden) {
    const connection = await server.connectAs(name)
    assert.match(
      await violation(connection, () => connection.subscribe(subject)),
      /Permissions Violation for Subscription/,
      `${name} ← ${subject}`,
    )
  }
})

test('each service can do its own part: publish, consume, follow, write, watch, serve and call', { skip }, async () => {
  await using server = await startSecuredServer()
  await using issuer = await server.bus('auth-issuer')
  await using introspector = await server.bus('token-introspector')
  await using gateway = await server.bus('gateway')
  await using ingest = await server.bus('sensor-ingest')
  await using router = await server.bus('alert-router')
  const revoked = contract(TokenRevokedSchema)
  const heard: string[] = []
  await using _following = await gateway.follow(revoked, 'beginning', (message) => heard.push(message.tokenHash))
  await issuer.publish(revoked, create(TokenRevokedSchema, { tokenHash: 'h' }))
  const blocked: string[] = []
  await using _blocks = await gateway.bucket(bucketContract(BlockSchema)).follow({
    snapshot: () => {},
    change: (key) => void blocked.push(key),
  })
  await ingest.bucket(bucketContract(BlockSchema)).create('k-128', create(BlockSchema, { format: 1 }))
  await using _serving = introspector.serve(IntrospectorService, {
    introspect: async () => ({ info: { active: true } }),
  })
  await introspector.follow(revoked, 'now', () => {})
  assert.equal((await gateway.client(IntrospectorService).introspect({ token: 't' })).info?.active, true)
  const routed: string[] = []
  const raised = contract(AlertRaisedSchema)
  await using _routing = await router.consume('alert-router', raised, (message) => {
    routed.push(message.alert?.alertId ?? '')
    return 'done'
  })
  await ingest.publish(raised, create(AlertRaisedSchema, { alert: { alertId: 'a' } }))
  await eventually(() => heard.length === 1 && blocked.length === 1 && routed.length === 1, {
    what: 'everything to arrive',
  })
})

test('decision points tell each other what they admitted', { skip }, async () => {
  await using server = await startSecuredServer()
  await using gateway = await server.bus('gateway')
  await using authorizer = await server.bus('authorizer')
  const heard: string[] = []
  const note = (who: string) => (message: { decider: string }) => void heard.push(`${who} of ${message.decider}`)
  await using _gateway = gateway.listen(rates, note('gateway'))
  await using _authorizer = authorizer.listen(rates, note('authorizer'))
  // Answered in order: both listen by then.
  await gateway.bucket(bucketContract(BlockSchema)).get('none')
  await authorizer.bucket(bucketContract(BlockSchema)).get('none')
  gateway.broadcast(rates, create(RateUsedSchema, { decider: 'g' }))
  authorizer.broadcast(rates, create(RateUsedSchema, { decider: 'a' }))
  await eventually(() => heard.length === 4, { what: 'everything to arrive' })
  assert.deepEqual(heard.toSorted(), ['authorizer of a', 'authorizer of g', 'gateway of a', 'gateway of g'])
})

test('payment-verifier reads whatever conduct is made of, writes it, and answers operators about it', {
  skip,
}, async () => {
  await using server = await startSecuredServer()
  await using verifier = await server.bus('payment-verifier')
  await using gateway = await server.bus('gateway')
  await using issuer = await server.bus('auth-issuer')
  await using router = await server.bus('alert-router')
  await using admin = await server.bus('admin-api')
  const [calls, logins, reuses] = [
    contract(CallObservedSchema),
    contract(LoginFailedSchema),
    contract(RefreshReusedSchema),
  ]
  const heard = new Set<string>()
  const note = (what: string) => (): 'done' => {
    heard.add(what)
    return 'done'
  }
  await using _calls = await verifier.consume('conduct-calls', calls, note('call'))
  await using _logins = await verifier.consume('conduct-logins', logins, note('login'))
  await using _reuses = await verifier.consume('conduct-reuses', reuses, note('reuse'))
  await using _findings = await verifier.consumeBytes('conduct-findings', FINDING_SUBJECT, note('finding'))
  await gateway.publish(calls, create(CallObservedSchema, {}), { id: 'call', key: 'gateway' })
  await issuer.publish(logins, create(LoginFailedSchema, {}), { id: 'login' })
  await issuer.publish(reuses, create(RefreshReusedSchema, {}), { id: 'reuse' })
  await router.publishBytes(`${FINDING_SUBJECT}.high`, new TextEncoder().encode('{}'), { id: 'finding' })
  const conducts = verifier.bucket(bucketContract(ConductSchema))
  await using _conducts = await conducts.follow({ snapshot: () => {}, change: note('conduct') })
  await conducts.create('c', create(ConductSchema, { clientId: 'c' }))
  await using _serving = verifier.serve(ConductService, {
    listConduct: async () => ({ standings: [{ score: 7 }] }),
    overrideConduct: async () => ({}),
  })
  const asked = async () => (await admin.client(ConductService).listConduct({})).standings[0]?.score === 7
  await eventually(asked, { what: 'operators are answered' })
  await eventually(() => heard.size === 5, { what: 'everything to arrive' })
})

test('a SIEM gets the findings live and from its own durable, at least once, and nothing else of ours', {
  skip,
}, async () => {
  await using server = await startSecuredServer()
  const siem = await server.connectAs('siem')
  const live: string[] = []
  siem.subscribe(`${FINDING_SUBJECT}.*`, { callback: (_error, message) => void live.push(text(message.data)) })
  await siem.flush()
  await using router = await server.bus('alert-router')
  await router.publishBytes(`${FINDING_SUBJECT}.high`, new TextEncoder().encode('{"finding":1}'), { id: '1' })
  await router.publishBytes(`${FINDING_SUBJECT}.low`, new TextEncoder().encode('{"finding":2}'), { id: '2' })
  await eventually(() => live.length === 2, { what: 'the live findings' })
  const consumer = await jetstream(siem, { apiPrefix: SIEM_API_PREFIX }).consumers.get('FINDINGS', SIEM_DURABLE)
  const pulled: string[] = []
  for await (const message of await consumer.fetch({ max_messages: 2, expires: 5000 })) {
    pulled.push(text(message.data))
    message.ack()
  }
  assert.deepEqual(pulled, ['{"finding":1}', '{"finding":2}'])
  const provisioner = await server.connectAs('provisioner')
  const manager = await jetstream(provisioner).jetstreamManager()
  await eventually(async () => (await manager.consumers.info('FINDINGS', SIEM_DURABLE)).num_ack_pending === 0, {
    what: 'the acknowledgements',
  })
  await using ingest = await server.bus('sensor-ingest')
  const others: string[] = []
  siem.subscribe(`${inboxPrefix('siem')}.>`, { callback: (_error, message) => void others.push(message.subject) })
  await ingest.publish(contract(AlertRaisedSchema), create(AlertRaisedSchema, { alert: { alertId: 'a' } }))
  await siem.flush()
  assert.deepEqual(others, [])
})

test('without a credential, or with a foreign one, nobody connects', { skip }, async () => {
  await using server = await startSecuredServer()
  await assert.rejects(connect({ servers: server.nats.url, reconnect: false }), /Authorization Violation/i)
  await assert.rejects(
    connect({ servers: server.nats.url, reconnect: false, authenticator: nkeyAuthenticator(createUser().getSeed()) }),
    /Authorization Violation/i,
  )
})
