import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { DEAD_LETTER_STREAM, FINDING_STREAM, FINDING_SUBJECT, rangeKey } from '@tollward/contracts'
import { Disposition } from '@tollward/contracts/detection'
import { BlockSchema, LiftCause } from '@tollward/contracts/enforcement'
import { eventually, requires, type Service } from '@tollward/testkit'
import { address, flood, scan } from './test-flows.ts'
import { blocks, type Stack, startStack } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server'] })

const ATTACKER = '127.0.0.66'
const RANGE = { address: address(ATTACKER), prefixLength: 128 }
const KEY = rangeKey(RANGE)
const FLOOD_MS = 400

/** What the whole way may take, the sensor's drain left out. */
const DECISION_MAX_MS = 500

const floodNow = () => flood(ATTACKER, 1200, Date.now() - FLOOD_MS, FLOOD_MS)

function blockOf(stack: Stack) {
  return eventually(() => stack.bus.bucket(blocks).get(KEY), { what: 'the flood is blocked', intervalMs: 2 })
}

async function messagesIn(stack: Stack, stream: string): Promise<number> {
  return (await stack.manager.streams.info(stream)).state.messages
}

async function metricsOf(service: Service): Promise<string> {
  return await (await fetch(`${service.healthUrl}/metrics`)).text()
}

/** While refused, a publisher gets an error, as from a stream that is full. */
async function refuseAlerts(stack: Stack, refused: boolean): Promise<void> {
  const { config } = await stack.manager.streams.info('ALERTS')
  await stack.manager.streams.update('ALERTS', { ...config, max_msg_size: refused ? 1 : -1 })
}

test('flows in; a block, its audit, a finding on the subject and one line in the file out, fast', {
  skip,
}, async () => {
  await using stack = await startStack()
  const file = join(stack.directory, 'findings.jsonl')
  await stack.start('alert-router', { TOLLWARD_FINDINGS_FILE: file })
  await stack.start('sensor-ingest')
  const audit = await stack.readAudit()
  const flows = floodNow()
  const publishedMs = performance.now()
  await stack.observe(flows)
  const { value: block, expiresAtMs } = await blockOf(stack)
  const tookMs = performance.now() - publishedMs
  assert(tookMs < DECISION_MAX_MS, `${tookMs} ms`)
  assert(expiresAtMs !== undefined && expiresAtMs > Date.now() + 4 * 60_000)
  assert(block.alert && block.alert.evidence.length > 0)
  const { alertId } = block.alert

  const readLine = async () => {
    const text = await readFile(file, 'utf8')
    return text.endsWith('\n') && text
  }
  const finding = JSON.parse(await eventually(readLine, { what: 'the finding is one line in the file' }))
  assert.equal(finding.finding_info.uid, alertId)
  assert.deepEqual([finding.action_id, finding.disposition_id], [2, 2])
  const [published, ...others] = await stack.bus.history(FINDING_STREAM, `${FINDING_SUBJECT}.*`, {
    sinceMs: 0,
    limit: 9,
  })
  assert(published && others.length === 0)
  assert.equal(published.subject, `${FINDING_SUBJECT}.high`)
  assert.deepEqual(JSON.parse(Buffer.from(published.bytes).toString()), finding)
  await eventually(() => audit.decided.length === 1, { what: 'the audit says so' })
  await eventually(async () => (await messagesIn(stack, 'ALERTS')) === 0, { what: 'the alert is acknowledged' })
})

test('killed between a block and its alert, the alert still arrives, once', { skip }, async () => {
  await using stack = await startStack()
  const service = await stack.start('sensor-ingest')
  await refuseAlerts(stack, true)
  await stack.observe(floodNow())
  const { value: block } = await blockOf(stack)
  await service.kill()
  await refuseAlerts(stack, false)
  assert.equal(await messagesIn(stack, 'ALERTS'), 0)
  const alerts = await stack.takeAlerts()
  const audit = await stack.readAudit()
  await service.start()
  // Another detection after it: when that has come, the first would have come twice.
  await stack.observe(scan(ATTACKER, 500, Date.now()))
  await eventually(() => alerts.some(({ detector }) => detector === 'port-scan'), {
    what: 'a later alert',
    timeoutMs: 30_000,
  })
  await eventually(() => alerts.some(({ detector }) => detector === 'connection-flood'), {
    what: 'the alert',
    timeoutMs: 30_000,
  })
  await service.stop()
  await service.start()
  await eventually(() => audit.decided.length > 0, { what: 'the audit' })
  assert.deepEqual(
    alerts.filter(({ detector }) => detector === 'connection-flood').map(({ alertId }) => alertId),
    [block.alert?.alertId],
  )
  assert.equal(audit.decided.length, 1)
})

test('an alert that the queue refuses is raised when it takes alerts again, and the service goes on blocking', {
  skip,
}, async () => {
  await using stack = await startStack()
  const service = await stack.start('sensor-ingest')
  const handled = async () => {
    const outcomes = (await metricsOf(service)).matchAll(
      /^tollward_bus_deliveries_total\{consumer="sensor-ingest-flows".*\} (\d+)$/gm,
    )
    return [...outcomes].reduce((sum, [, count]) => sum + Number(count), 0)
  }
  await refuseAlerts(stack, true)
  await stack.observe(floodNow())
  await blockOf(stack)
  await eventually(async () => (await handled()) === 1, { what: 'the flood is dealt with' })
  await stack.observe(scan('192.0.2.9', 500, Date.now()))
  await eventually(async () => (await handled()) >= 2, { what: 'the scan was tried to be told' })
  await refuseAlerts(stack, false)
  const alerts = await stack.takeAlerts()
  await eventually(() => alerts.length === 2, { what: 'both alerts', timeoutMs: 20_000 })
})

test('bytes that are no flows become a dead letter, and the service lives', { skip }, async () => {
  await using stack = await startStack()
  await stack.start('sensor-ingest')
  await stack.bus.publishBytes('tollward.sensor.v1.flow.observed.node-a', Buffer.from('not a protobuf'))
  await stack.observe(floodNow())
  await blockOf(stack)
  assert.equal(await messagesIn(stack, DEAD_LETTER_STREAM), 1)
})

test('a block that lapses is audited as expired, once, also over a restart; then the next one lasts longer', {
  skip,
}, async () => {
  await using stack = await startStack()
  await stack.applySettings('default', '{ connectionFlood: { connections: 400, withinSeconds: 2, blockFor: 1s } }')
  const service = await stack.start('sensor-ingest')
  const audit = await stack.readAudit()
  await stack.observe(floodNow())
  await blockOf(stack)
  await eventually(() => audit.lifted.length === 1, { what: 'the block lapses' })
  await service.stop()
  await service.start()
  const before = Date.now()
  await stack.observe(floodNow())
  const { expiresAtMs } = await blockOf(stack)
  assert(expiresAtMs !== undefined && expiresAtMs >= before + 2000, 'the second block lasts twice as long')
  await eventually(() => audit.lifted.length === 2, { what: 'the second block lapses' })
  assert.deepEqual(
    audit.lifted.map(({ cause }) => cause),
    [LiftCause.EXPIRED, LiftCause.EXPIRED],
  )
  assert.equal(audit.decided.length, 2)
})

test("an operator's block and its removal are audited and raise no alert", { skip }, async () => {
  await using stack = await startStack()
  const service = await stack.start('sensor-ingest')
  const audit = await stack.readAudit()
  const expiresAtMs = Date.now() + 60_000
  const block = create(BlockSchema, {
    format: 1,
    ...RANGE,
    decidedBy: 'operator:alice',
    expiresAt: timestampFromMs(expiresAtMs),
  })
  const bucket = stack.bus.bucket(blocks)
  const revision = await bucket.create(KEY, block, { expiresAtMs })
  await eventually(() => audit.decided.length === 1, { what: 'the block is audited' })
  await stack.observe(floodNow())
  const seen = /^tollward_ingest_detections_total\{detector="connection-flood",result="already_blocked"\} 1$/m
  await eventually(async () => seen.test(await metricsOf(service)), { what: 'the flood of a blocked source is seen' })
  await bucket.remove(KEY, { revision })
  await eventually(() => audit.lifted.length === 1, { what: 'the removal is audited' })
  assert.deepEqual(audit.decided, ['operator:alice'])
  assert.equal(audit.lifted[0]?.cause, LiftCause.REMOVED)
  assert.equal(await messagesIn(stack, 'ALERTS'), 0)
})

test('settings that cannot be used leave those in force that were', { skip }, async () => {
  await using stack = await startStack()
  const service = await stack.start('sensor-ingest')
  const flooding = 'connectionFlood: { connections: 400, withinSeconds: 2, blockFor: 5m, mode: observe }'
  await stack.applySettings('default', `{ ${flooding} }`)
  await stack.applySettings('default', '{ connectionFlood: { connections: 3 } }')
  await stack.applySettings(
    'default',
    `{ connectionFlood: { connections: 400, withinSeconds: 2, blockFor: 5m }, allow: [10.0.0.1/8] }`,
  )
  const faults = () => service.lines.filter((line) => line.includes('cannot be used')).length
  await eventually(() => faults() === 2, { what: 'both are refused' })
  const alerts = await stack.takeAlerts()
  await stack.observe(floodNow())
  const [alert] = await eventually(() => (alerts.length > 0 ? alerts : undefined), { what: 'the flood is told' })
  assert.equal(alert?.disposition, Disposition.WOULD_BLOCK)
  assert.equal(await stack.bus.bucket(blocks).get(KEY), undefined)
})
