import assert from 'node:assert/strict'
import { flood, scan, tryPort } from '../scenario/attack.ts'
import { type Customer, LOCAL } from '../scenario/customer.ts'
import { send } from '../scenario/http.ts'
import { type Finding, isFindingOf, openSiem } from '../scenario/siem.ts'
import { problemOf, type Tour, until } from './tour.ts'
import { ATTACKER, NEIGHBOUR } from './who.ts'

const GATEWAY_PORT = 8080
const SCANNED_PORTS = 200
const FIRST_SCANNED_PORT = 20_000
/** Enough for any threshold that makes sense, and a bound in time. */
const FLOOD_CONNECTIONS_MAX = 20_000
const FLOOD_AT_ONCE = 32
const NEIGHBOUR_PAUSE_MS = 40
const DROPPED_WITHIN_MS = 1000
/** disposition_id of OCSF. */
const OCSF_BLOCKED = 2
/** sensor-ingest tells of an attack that goes on after this time again. */
const TOLD_AGAIN_MS = 5 * 60_000

interface BlockRow {
  readonly cidr: string
  readonly decidedAt: string
  readonly decidedBy: string
  readonly reason: string
}

interface Scene {
  readonly customer: Customer
  readonly stranger: Customer
  readonly isSensorOn: boolean
}

/** A scan and a flood from one address: alerts, a block in the kernel and at layer 7, a neighbour unharmed. */
export async function attackAndBlock(tour: Tour, { customer, isSensorOn }: Scene): Promise<void> {
  if (!isSensorOn) return blockByHand(tour)
  await using siem = await openSiem()

  await tour.step(
    `A scan of ${SCANNED_PORTS} ports from ${ATTACKER}: an alert, and no block, for a source can be forged`,
    async () => {
      const earlier = await recentFinding(tour, 'port-scan')
      await scan(ATTACKER, '127.0.0.1', FIRST_SCANNED_PORT, SCANNED_PORTS)
      const finding = earlier ?? (await siem.next('port-scan', ATTACKER))
      if (earlier) tour.say('told a moment ago by an earlier tour; what goes on is not told again at once')
      show(tour, finding)
      assert.notEqual(finding.disposition_id, OCSF_BLOCKED, 'a scan alone has blocked')
      assert.ok(!(await blockOf(tour)), 'a scan alone has blocked')
    },
  )

  await tour.step(`A flood of connections from ${ATTACKER}: dropped by XDP in under a second`, async () => {
    const droppedBefore = await droppedPackets()
    await using neighbour = keepCalling(customer)
    const startMs = Date.now()
    const met = await flood(ATTACKER, '127.0.0.1', GATEWAY_PORT, FLOOD_CONNECTIONS_MAX, FLOOD_AT_ONCE)
    const block = await until('the block', () => blockOf(tour))
    tour.say(`${met.connected} connections were completed, then silence after ${met.silentAfterMs?.toFixed(0)} ms`)
    tour.say(
      `block decided ${Date.parse(block.decidedAt) - startMs} ms after the first packet, by ${block.decidedBy}: ${block.reason}`,
    )
    assert.ok(
      met.silentAfterMs !== undefined && met.silentAfterMs < DROPPED_WITHIN_MS,
      `not dropped within ${DROPPED_WITHIN_MS} ms`,
    )
    const dropped = await until('the kernel to count drops', async () => (await droppedPackets()) - droppedBefore)
    tour.say(`XDP dropped ${dropped} packets of ${ATTACKER}`)
    assert.equal(await tryPort(ATTACKER, '127.0.0.1', GATEWAY_PORT), false, 'the attacker still gets through')
    const statuses = await neighbour.end()
    tour.say(`meanwhile ${NEIGHBOUR} made ${statuses.length} requests: ${[...new Set(statuses)].join(', ')}`)
    assert.ok(statuses.length > 0 && statuses.every((status) => status === 200), 'the neighbour was harmed')
  })

  await tour.step('What comes another way, through a proxy, is refused at layer 7', () => refusedByProxy(tour))

  await tour.step('The SIEM has it: an OCSF finding that says what was seen and what was done', async () => {
    const finding = await siem.next('connection-flood', ATTACKER)
    show(tour, finding)
    assert.equal(finding.class_uid, 2004)
    assert.equal(finding.disposition_id, OCSF_BLOCKED, 'the finding does not say blocked')
    await until('the finding in the operator’s list', async () =>
      (await tour.tollward<{ finding: Finding }[]>(['alerts'])).some(
        (row) => row.finding.finding_info.uid === finding.finding_info.uid,
      ),
    )
  })

  await tour.step('An operator lifts the block; the address gets through again', async () => {
    await tour.tollward(['blocks', 'remove', ATTACKER])
    await until('a connection', () => tryPort(ATTACKER, '127.0.0.1', GATEWAY_PORT))
  })
}

/** Without the sensor nobody sees packets; a block still holds at layer 7. */
async function blockByHand(tour: Tour): Promise<void> {
  await tour.step(
    'The sensor is off here (it needs root), so an operator blocks the address; layer 7 refuses it',
    async () => {
      await tour.tollward(['blocks', 'add', ATTACKER, '--ttl', '60s', '--reason', 'demo'])
      await until(
        'the gateway to refuse',
        async () => (await tour.http(`${LOCAL.gateway}/public`, { from: ATTACKER })).status === 403,
      )
      await refusedByProxy(tour)
      assert.equal((await tour.http(`${LOCAL.gateway}/public`, { from: NEIGHBOUR })).status, 200)
      await tour.tollward(['blocks', 'remove', ATTACKER])
      await until(
        'the gateway to let it through',
        async () => (await tour.http(`${LOCAL.gateway}/public`, { from: ATTACKER })).status === 200,
      )
    },
  )
}

async function refusedByProxy(tour: Tour): Promise<void> {
  const refused = await tour.http(LOCAL.forwardAuth, {
    headers: {
      'x-forwarded-for': ATTACKER,
      'x-forwarded-method': 'GET',
      'x-forwarded-proto': 'http',
      'x-forwarded-host': 'api.example',
      'x-forwarded-uri': '/public',
    },
  })
  assert.equal(refused.status, 403)
  assert.equal(problemOf(refused), 'blocked')
}

async function recentFinding(tour: Tour, detector: string): Promise<Finding | undefined> {
  const alerts = await tour.tollward<{ publishedAt: string; finding: Finding }[]>(['alerts'])
  const recent = alerts.filter(({ publishedAt }) => Date.now() - Date.parse(publishedAt) < TOLD_AGAIN_MS)
  return recent.map(({ finding }) => finding).findLast((finding) => isFindingOf(finding, detector, ATTACKER))
}

async function blockOf(tour: Tour): Promise<BlockRow | undefined> {
  return (await tour.tollward<BlockRow[]>(['blocks', 'list'])).find(({ cidr }) => cidr === ATTACKER)
}

async function droppedPackets(): Promise<number> {
  const { body } = await send(LOCAL.sensorMetrics)
  const lines = body.split('\n').filter((line) => /^tollward_node_sensor_packets_total\{.*verdict="dropped/.test(line))
  return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0)
}

/** An honest client at its work; `end` gives the statuses that it saw. */
function keepCalling(customer: Customer) {
  const statuses: number[] = []
  const ended = new AbortController()
  const calling = (async () => {
    while (!ended.signal.aborted) {
      statuses.push((await customer.quiet().call(`${LOCAL.gateway}/orders`)).status)
      await new Promise((resolve) => setTimeout(resolve, NEIGHBOUR_PAUSE_MS))
    }
  })()
  const end = async () => {
    ended.abort()
    await calling
    return statuses
  }
  return { end, [Symbol.asyncDispose]: async () => void (await end()) }
}

function show(tour: Tour, finding: Finding): void {
  const { message, severity, disposition, finding_info } = finding
  tour.say(`finding ${finding_info.uid}: ${severity}, ${disposition}: ${finding_info.title}`)
  tour.say(`${message ?? ''}`)
}
