import assert from 'node:assert/strict'
import { createHash, randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { bucketContract, contract, FINDING_SUBJECT, formatAddress } from '@tollward/contracts'
import { AlertRaisedSchema, Confidence, Disposition, Severity } from '@tollward/contracts/detection'
import { ConductSchema, ConductService } from '@tollward/contracts/payment'
import { CallObservedSchema, Outcome } from '@tollward/contracts/sensor'
import { LoginFailedSchema, RefreshReusedSchema } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { eventually, freePort, requires, startService, temporaryDirectory } from '@tollward/testkit'
import { TestStack } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
const resources = new AsyncDisposableStack()
after(() => resources.disposeAsync())

// The tests share one stack with two replicas; each has clients and addresses of its own.
const stack = skip ? undefined : resources.use(await TestStack.start())
const replica = stack && resources.use(await stack.replica())
if (stack) resources.use(await stack.replica())

function shared() {
  assert.ok(stack && replica)
  const conduct = stack.bus.client(ConductService, { timeoutMs: 5_000 })
  const standing = async (clientId: string) => (await conduct.listConduct({ clientId })).standings[0]
  return { stack, replica, bus: stack.bus, conduct, standing }
}

type Kind = 'admitted' | 'violations' | 'foreignTxids' | 'alerts' | 'failedLogins'

/** As often as both replicas are asked, whichever of them answers. */
const ASKED = 12

/** Waits until every replica says that this was counted of a client; what decays within a test is less than a hundredth. */
async function counts(clientId: string, kind: Kind, expected: number) {
  const { standing } = shared()
  const reached = async () => {
    const answers = await Promise.all(Array.from({ length: ASKED }, () => standing(clientId)))
    const wrong = answers.map((each) => each?.conduct?.[kind] ?? 0).find((each) => Math.abs(each - expected) > 0.01)
    if (wrong !== undefined) throw new Error(`${wrong} instead of ${expected}`)
    return true
  }
  await eventually(reached, { what: `${kind} of ${clientId}` })
}

let lastAddress = 0
function newAddress(): Uint8Array {
  lastAddress += 1
  return Uint8Array.from([0x20, 0x01, 0x0d, 0xb8, ...new Uint8Array(10), lastAddress >> 8, lastAddress & 0xff])
}

async function call(init: MessageInitShape<typeof CallObservedSchema>): Promise<void> {
  const decisionId = randomUUID()
  const decidedAt = timestampFromMs(Date.now())
  const message = create(CallObservedSchema, {
    outcome: Outcome.REFUSED,
    reason: 'no-rule',
    decisionId,
    decidedAt,
    ...init,
  })
  await shared().bus.publish(contract(CallObservedSchema), message, { id: decisionId, key: 'authorizer' })
}

async function finding(address: Uint8Array, more: object = {}): Promise<void> {
  const value = formatAddress(address)
  const what = { severity_id: 4, confidence_id: 3, disposition_id: 2, observables: [{ type_id: 2, value }] }
  const finding = { time: Date.now(), ...what, ...more }
  await shared().bus.publishBytes(`${FINDING_SUBJECT}.high`, Buffer.from(JSON.stringify(finding)), { id: randomUUID() })
}

async function failedLogin(address: Uint8Array, failedAtMs = Date.now()): Promise<void> {
  const message = create(LoginFailedSchema, { address, failedAt: timestampFromMs(failedAtMs) })
  await shared().bus.publish(contract(LoginFailedSchema), message, { id: randomUUID() })
}

/** A client of whom an earlier service knew this, for a hundred days. */
async function known(clientId: string, init: MessageInitShape<typeof ConductSchema>): Promise<void> {
  const { bus, standing } = shared()
  const key = createHash('sha256').update(clientId).digest('base64url')
  const seen = { firstSeenAt: timestampFromMs(Date.now() - 100 * 86_400_000), countedAt: timestampFromMs(Date.now()) }
  const value = create(ConductSchema, { format: 1, clientId, ...seen, ...init })
  await bus.bucket(bucketContract(ConductSchema)).create(key, value)
  const everywhere = async () => {
    const answers = await Promise.all(Array.from({ length: ASKED }, () => standing(clientId)))
    return answers.every((each) => each !== undefined)
  }
  await eventually(everywhere, { what: 'the conduct is known' })
}

test('what two replicas hear of a client at once is counted in full, and once', { skip }, async () => {
  const address = newAddress()
  await Promise.all(Array.from({ length: 300 }, () => call({ clientId: 'flo', address })))
  await counts('flo', 'violations', 300)
  await call({ clientId: 'flo', address, outcome: Outcome.ADMITTED, reason: '' })
  await counts('flo', 'admitted', 100)
  assert.deepEqual(
    (await shared().standing('flo'))?.conduct?.calledFrom.map((from) => formatAddress(from.address)),
    [formatAddress(address)],
  )
})

test('alerts and failed logins count where a client alone called from, and nowhere else', { skip }, async () => {
  const [own, common, elsewhere] = [newAddress(), newAddress(), newAddress()]
  for (const address of [own, common]) await call({ clientId: 'gus', address })
  await call({ clientId: 'hal', address: common })
  await call({ clientId: '', address: elsewhere })
  await counts('gus', 'violations', 2)
  await counts('hal', 'violations', 1)
  for (const address of [common, elsewhere]) {
    await finding(address)
    await failedLogin(address)
  }
  await finding(own, { severity_id: 1 })
  await finding(own, { disposition_id: 15 })
  await finding(own, { confidence_id: 2 })
  await finding(own, { time: Date.now() - 2 * 86_400_000 })
  await failedLogin(own, Date.now() - 2 * 86_400_000)
  await finding(own, { observables: [] })
  // Each replica reads some of these, after what must not count.
  for (let count = 0; count < 20; count += 1) await Promise.all([finding(own), failedLogin(own)])
  await counts('gus', 'alerts', 20)
  await counts('gus', 'failedLogins', 20)
  const { conduct } = (await shared().standing('hal')) ?? {}
  assert.deepEqual([conduct?.alerts, conduct?.failedLogins], [0, 0])
})

test('a refresh token that was used again counts against its client', { skip }, async () => {
  const message = create(RefreshReusedSchema, { clientId: 'ida', reusedAt: timestampFromMs(Date.now()) })
  await shared().bus.publish(contract(RefreshReusedSchema), message, { id: randomUUID() })
  await counts('ida', 'failedLogins', 1)
})

test("using another's transaction counts against who does it, not against who paid, and an unknown one does not", {
  skip,
}, async () => {
  const { stack, replica, standing } = shared()
  const invoice = await replica.open('payer', 'orders')
  const txid = await stack.pay(invoice)
  await replica.reaches('payer', invoice.id, 'seen')
  const present = async (clientId: string, presented: string) =>
    await stack.verifier.redeem({ clientId, plan: 'orders', txid: presented })
  // Either replica may answer, and each has to have seen the payment.
  await eventually(
    async () => {
      await present('thief', txid)
      return ((await standing('thief'))?.conduct?.foreignTxids ?? 0) > 3.5
    },
    { what: 'the thief is counted' },
  )
  await Promise.all(Array.from({ length: 10 }, () => present('honest', '00'.repeat(32))))
  await present('payer', txid)
  const { score, reasons } = (await standing('thief')) ?? { score: 400, reasons: [] }
  assert.ok(score < 400, `${score}`)
  assert.match(reasons.join('\n'), /uses of transactions that others paid/)
  // Deeds of one replica are written in the order in which they were done.
  await call({ clientId: 'honest', address: newAddress() })
  await call({ clientId: 'payer', address: newAddress() })
  for (const clientId of ['honest', 'payer']) {
    await counts(clientId, 'violations', 1)
    assert.equal((await standing(clientId))?.conduct?.foreignTxids, 0)
  }
})

test('the price for a client follows its conduct and is frozen in its invoices; misbehaving raises the next one', {
  skip,
}, async () => {
  const { stack, replica } = shared()
  await known('kay', { admitted: 20_000 })
  await known('lee', { admitted: 20_000, violations: 10_000 })
  const quote = async (clientId: string) => await stack.verifier.quote({ clientId, plan: 'kind' })
  const kay = await quote('kay')
  assert.deepEqual([kay.listPriceSats, kay.priceSats], [10_000n, 8_000n])
  assert.deepEqual(
    kay.discounts.map(({ kind, basisPoints, amountSats, score }) => [kind, basisPoints, amountSats, score]),
    [['conduct', 2000, 2000n, 1000]],
  )
  for (const clientId of ['lee', 'nobody']) assert.equal((await quote(clientId)).priceSats, 10_000n)
  const invoice = await replica.open('kay', 'kind')
  assert.deepEqual([invoice.listPriceSats, invoice.amountSats], ['10000', '8000'])
  assert.deepEqual(invoice.discounts, [{ kind: 'conduct', basisPoints: 2000, amountSats: '2000', score: 1000 }])
  const address = newAddress()
  await Promise.all(Array.from({ length: 2000 }, () => call({ clientId: 'kay', address })))
  await counts('kay', 'violations', 2000)
  assert.ok((await quote('kay')).priceSats > 8_000n)
  assert.ok(BigInt((await replica.open('kay', 'kind')).amountSats) > 8_000n)
  assert.equal((await replica.read('kay', invoice.id)).amountSats, '8000')
})

test("an operator's word replaces the score at every replica, until it is lifted", { skip }, async () => {
  const { stack, conduct, standing } = shared()
  const score = async (clientId: string) => (await standing(clientId))?.score
  await known('moe', { admitted: 20_000 })
  const word = { clientId: 'moe', score: 10, reason: 'resells access', operator: 'ops' }
  const { standing: told } = await conduct.overrideConduct(word)
  assert.deepEqual([told?.score, told?.reasons], [10, ['ops set it to 10: resells access']])
  const everywhere = async (expected: number) => {
    // Answers come from either replica.
    const answers = await Promise.all(Array.from({ length: ASKED }, () => score('moe')))
    return answers.every((each) => each === expected)
  }
  await eventually(() => everywhere(10), { what: 'the override holds' })
  assert.equal((await stack.verifier.quote({ clientId: 'moe', plan: 'kind' })).priceSats, 10_000n)
  assert.equal((await conduct.overrideConduct({ clientId: 'moe', operator: 'ops' })).standing?.score, 1000)
  await eventually(() => everywhere(1000), { what: 'the override is lifted' })
  const wrong = [
    { ...word, clientId: '' },
    { ...word, score: 1001 },
    { ...word, reason: '' },
    { ...word, operator: '' },
    { ...word, until: timestampFromMs(Date.now() - 1) },
  ]
  for (const each of wrong) {
    const refused = (error: unknown) => error instanceof AppError && error.code === 'invalid_argument'
    await assert.rejects(conduct.overrideConduct(each), refused)
  }
  const worstFirst = (await conduct.listConduct({ limit: 3 })).standings.map((each) => each.score)
  assert.equal(worstFirst.length, 3)
  assert.deepEqual(
    worstFirst,
    worstFirst.toSorted((one, other) => one - other),
  )
})

test('what is known of clients outlives the service, and what it was told last is written at its end', {
  skip,
}, async () => {
  const { stack, standing } = shared()
  const extra = await stack.replica()
  const address = newAddress()
  await Promise.all(Array.from({ length: 60 }, () => call({ clientId: 'noa', address })))
  await extra[Symbol.asyncDispose]()
  await counts('noa', 'violations', 60)
  await failedLogin(address)
  await counts('noa', 'failedLogins', 1)
  assert.ok((await standing('noa'))?.reasons.length)
})

test('an alert of a detector becomes a finding, and that counts; one whose source may be forged does not', {
  skip,
}, async () => {
  const { stack, bus } = shared()
  await using directory = await temporaryDirectory()
  await using _router = await startService('alert-router', {
    TOLLWARD_NATS_URL: stack.nats.url,
    TOLLWARD_HEALTH_PORT: String(await freePort()),
    TOLLWARD_FINDINGS_FILE: join(directory.path, 'findings.jsonl'),
  })
  const source = newAddress()
  await call({ clientId: 'pam', address: source })
  await counts('pam', 'violations', 1)
  const raise = async (confidence: Confidence) => {
    const alertId = randomUUID()
    const kind = { detector: 'connection-flood', severity: Severity.HIGH, disposition: Disposition.BLOCKED }
    const alert = { alertId, ...kind, confidence, source, raisedAt: timestampFromMs(Date.now()) }
    await bus.publish(contract(AlertRaisedSchema), create(AlertRaisedSchema, { alert }), { id: alertId })
  }
  await raise(Confidence.LOW)
  for (let count = 0; count < 10; count += 1) await raise(Confidence.HIGH)
  await counts('pam', 'alerts', 10)
})

test('a letter that is no finding is put aside, and those after it are read', { skip }, async () => {
  const { bus } = shared()
  const address = newAddress()
  await call({ clientId: 'ola', address })
  await counts('ola', 'violations', 1)
  for (const text of ['{', '[]', '{"time":"now"}']) {
    await bus.publishBytes(`${FINDING_SUBJECT}.high`, Buffer.from(text), { id: randomUUID() })
  }
  await finding(address)
  await counts('ola', 'alerts', 1)
})
