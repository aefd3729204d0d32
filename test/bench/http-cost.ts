// A process of http-cost.bench.ts, in a network of its own: HTTP over its loopback device, without the sensor and with it, in turns.
import process from 'node:process'
import { connect } from '@nats-io/transport-node'
import { provision } from '@tollward/bus'
import { enterOwnNetwork, startNatsServer } from '@tollward/testkit'
import { GENERATOR_CORE, moveTo, SERVER_CORE } from './cores.ts'
import { cpuMs } from './cpu.ts'
import { load, pacedLoad, type Target } from './http-load.ts'
import { HTTP_PORT, startNginx, withSensor } from './http-server.ts'
import { median, percentile, rounded } from './latencies.ts'

const CONNECTIONS = 32
const ROUNDS = 5
const WARM_UP_MS = 300
const TURN_MS = 2000
/** What is promised: so much of so many requests a second is lost at most. */
const LOST_MAX = 0.03
const PER_SECOND = 20_000
const REQUEST = Buffer.from('GET / HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: */*\r\n\r\n')
const TARGET: Target = { port: HTTP_PORT, next: () => REQUEST, accepts: (answer) => answer.includes('200 OK') }

/** As many as can be, or as many as are promised. */
type Pace = 'most' | 'steady'

/** One turn: what came back, and the CPU time for one request, of nginx, of the generator and of the sensor's process. */
interface Turn {
  readonly perSecond: number
  readonly latenciesMs: readonly number[]
  readonly nginxMicros: number
  readonly generatorMicros: number
  readonly sensorMicros: number
}

enterOwnNetwork()
await using resources = new AsyncDisposableStack()
moveTo(SERVER_CORE)
const nginx = await startNginx(resources, TARGET)
const nats = resources.use(await startNatsServer())
const provisioner = await connect({ servers: nats.url })
await provision(provisioner)
await provisioner.close()
moveTo(GENERATOR_CORE)
await load(TARGET, CONNECTIONS, WARM_UP_MS)
const turns = { most: pairs(), steady: pairs() }
for (let round = 0; round < ROUNDS; round++) {
  for (const pace of ['most', 'steady'] as const) turns[pace].without.push(await turn(pace))
  await withSensor(nats, {}, async ({ pid }) => {
    for (const pace of ['most', 'steady'] as const) turns[pace].with.push(await turn(pace, pid))
  })
}
process.stdout.write(`${JSON.stringify([...rowsOf('most'), ...rowsOf('steady')])}\n`)
await resources.disposeAsync()
process.exit(0)

function pairs(): { without: Turn[]; with: Turn[] } {
  return { without: [], with: [] }
}

async function turn(pace: Pace, sensor?: number): Promise<Turn> {
  await load(TARGET, CONNECTIONS, WARM_UP_MS)
  const used = () => [nginx, process.pid, ...(sensor === undefined ? [] : [sensor])].map(cpuMs)
  const before = used()
  const steady = { connections: CONNECTIONS, durationMs: TURN_MS, perSecond: PER_SECOND }
  const measured = await (pace === 'most' ? load(TARGET, CONNECTIONS, TURN_MS) : pacedLoad(TARGET, steady))
  const after = used()
  const answers = measured.latenciesMs.length
  const micros = (index: number) => (((after[index] ?? 0) - (before[index] ?? 0)) * 1000) / answers
  return {
    perSecond: (answers * 1000) / measured.durationMs,
    latenciesMs: measured.latenciesMs,
    ...{ nginxMicros: micros(0), generatorMicros: micros(1), sensorMicros: micros(2) },
  }
}

function rowsOf(pace: Pace) {
  const { without, with: sensed } = turns[pace]
  const row = (what: string, those: readonly Turn[]) => {
    const latencies = those.flatMap(({ latenciesMs }) => latenciesMs)
    const of = (pick: (one: Turn) => number) => rounded(median(those.map(pick)))
    return {
      ...{ pace, what, perSecond: Math.round(of(({ perSecond }) => perSecond)) },
      ...{ p50Ms: percentile(latencies, 0.5), p99Ms: percentile(latencies, 0.99) },
      nginxMicros: of(({ nginxMicros }) => nginxMicros),
      generatorMicros: of(({ generatorMicros }) => generatorMicros),
      sensorMicros: of(({ sensorMicros }) => sensorMicros),
    }
  }
  const shares = sensed.map(({ perSecond }, round) => perSecond / (without[round]?.perSecond ?? Number.NaN))
  const lost = 1 - median(shares)
  const promise = `; at most ${LOST_MAX * 100} %: ${lost <= LOST_MAX ? 'kept' : 'NOT KEPT'}`
  return [
    row('without the sensor', without),
    row('with the sensor', sensed),
    { pace, what: `lost ${rounded(lost * 100)} %${pace === 'steady' ? promise : ''}` },
  ]
}
