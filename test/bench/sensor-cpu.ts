// A process of sensor-cpu.bench.ts, in a network of its own: the real sensor and bus, and packets of ever other flows.
import { readFileSync } from 'node:fs'
import process from 'node:process'
import { setTimeout as pause } from 'node:timers/promises'
import { connect } from '@nats-io/transport-node'
import { provision } from '@tollward/bus'
import { enterOwnNetwork, eventually, freePort, startNatsServer, startService } from '@tollward/testkit'
import { cpuMs } from './cpu.ts'
import { rounded } from './latencies.ts'
import { type Cable, packetCable, type Sender, type Senders } from './packets.ts'

/** Flows a second; each packet is one. */
const RATES = [0, 1000, 10_000, 100_000]
const TURN_MS = 5000
const WARM_UP_MS = 1500
/** So many in turns that no flow comes again within a second. */
const SENDERS = 200_000
const KIB = 1024

enterOwnNetwork()
await using resources = new AsyncDisposableStack()
const nats = resources.use(await startNatsServer())
const provisioner = await connect({ servers: nats.url })
await provision(provisioner)
await provisioner.close()
const cable = resources.use(await packetCable('here'))
const sensor = resources.use(
  await startService('node-sensor', {
    PATH: process.env.PATH,
    TOLLWARD_NATS_URL: nats.url,
    TOLLWARD_HEALTH_PORT: String(await freePort()),
    TOLLWARD_INTERFACES: cable.device,
    TOLLWARD_PIN_DIRECTORY: '/sys/fs/bpf/tollward-bench-cpu',
  }),
)
const senders = cable.senders(
  Array.from(
    { length: SENDERS },
    (_, index): Sender => ({ address: 0x0a00_0000 + index, port: 1024 + (index % 60_000) }),
  ),
)
const rows = []
for (const rate of RATES) rows.push(await measure(cable, senders, rate))
process.stdout.write(`${JSON.stringify(rows)}\n`)
await resources.disposeAsync()
process.exit(0)

async function measure(on: Cable, those: Senders, perSecond: number) {
  const traffic = async (ms: number) => {
    if (perSecond > 0) return on.send(those, ms, perSecond)
    await pause(ms)
    return { arrived: 0, durationMs: ms }
  }
  await traffic(WARM_UP_MS)
  const before = await state()
  const { arrived, durationMs } = await traffic(TURN_MS)
  const seconds = durationMs / 1000
  const published = await settled()
  const after = await state()
  const flows = published - before.published
  // Also of what it still had to do when the last packet had come.
  const usedMs = after.cpuMs - before.cpuMs
  return {
    wanted: perSecond,
    flowsPerSecond: Math.round(arrived / seconds),
    ...{ arrived, published: flows },
    lost: after.lost - before.lost,
    shareOfOneCore: rounded(usedMs / 1000 / seconds),
    microsEachFlow: flows > 0 ? rounded((usedMs * 1000) / flows) : '',
    rssMiB: Math.round(after.rssKib / KIB),
  }
}

/** Once all that came has been published. */
async function settled(): Promise<number> {
  let last = -1
  await eventually(
    async () => {
      const { published } = await state()
      const isSettled = published === last
      last = published
      return isSettled
    },
    { what: 'all flows are published', intervalMs: 500, timeoutMs: 60_000 },
  )
  return last
}

async function state() {
  const text = await (await fetch(`${sensor.healthUrl}/metrics`)).text()
  const sum = (name: string) =>
    [...text.matchAll(new RegExp(`^tollward_node_sensor_${name}.* (\\d+)$`, 'gm'))].reduce(
      (all, [, count]) => all + Number(count),
      0,
    )
  const status = readFileSync(`/proc/${sensor.pid}/status`, 'utf8')
  return {
    published: sum('flows_total\\{result="published"'),
    lost: sum('flows_lost_total'),
    cpuMs: cpuMs(sensor.pid),
    rssKib: Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]),
  }
}
