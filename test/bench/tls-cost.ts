// A process of tls-cost.bench.ts, in a network of its own: what reading a server's calls of OpenSSL costs that server.
import process from 'node:process'
import { connect } from '@nats-io/transport-node'
import { provision } from '@tollward/bus'
import { enterOwnNetwork, type Service, startNatsServer } from '@tollward/testkit'
import { GENERATOR_CORE, moveTo, SERVER_CORE } from './cores.ts'
import { cpuMs } from './cpu.ts'
import { load, pacedLoad, type Target } from './http-load.ts'
import { HTTPS_PORT, startNginx, withSensor } from './http-server.ts'
import { median, rounded } from './latencies.ts'

const CONNECTIONS = 32
const ROUNDS = 5
const WARM_UP_MS = 500
const TURN_MS = 3000
/**
 * On both sides alike, and so many that whatever is read is published, too: a server that is asked less often wakes up for fewer
 * requests at a time, and each costs it more.
 */
const PER_SECOND = 10_000
/** Nginx asks OpenSSL for a request, whether there is another, and writes its answer. */
const CALLS_EACH_REQUEST = 3
/** What is promised of one call. */
const MICROS_MAX = 2
const REQUEST = Buffer.from('GET / HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: */*\r\n\r\n')
const TARGET: Target = {
  port: HTTPS_PORT,
  tls: true,
  next: () => REQUEST,
  accepts: (answer) => answer.includes('200 OK'),
}
/** All that is there is read: nothing is left out to stay within a budget. */
const EVERY_CALL = { TOLLWARD_CALLS: 'on', TOLLWARD_CALLS_CGROUP_BYTES_PER_SECOND: '0' }

interface Turn {
  readonly perSecond: number
  readonly nginxMicros: number
  readonly sensorMicros: number
  /** Calls of the API that the sensor published meanwhile, for each request that was answered. */
  readonly publishedShare: number
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
const turns = { off: [] as Turn[], on: [] as Turn[] }
for (let round = 0; round < ROUNDS; round++) {
  turns.off.push(await withSensor(nats, {}, turn))
  turns.on.push(await withSensor(nats, EVERY_CALL, turn))
}
process.stdout.write(`${JSON.stringify(rowsOf())}\n`)
await resources.disposeAsync()
process.exit(0)

async function turn(sensor: Service): Promise<Turn> {
  await load(TARGET, CONNECTIONS, WARM_UP_MS)
  const before = { nginx: cpuMs(nginx), sensor: cpuMs(sensor.pid), published: await published(sensor) }
  const pace = { connections: CONNECTIONS, durationMs: TURN_MS, perSecond: PER_SECOND }
  const { latenciesMs, durationMs } = await pacedLoad(TARGET, pace)
  const nginxMs = cpuMs(nginx) - before.nginx
  const answered = latenciesMs.length
  return {
    perSecond: (answered * 1000) / durationMs,
    nginxMicros: (nginxMs * 1000) / answered,
    sensorMicros: ((cpuMs(sensor.pid) - before.sensor) * 1000) / answered,
    publishedShare: ((await published(sensor)) - before.published) / answered,
  }
}

/** Since it started; of every program of this machine that uses a library that nginx uses, too. */
async function published({ healthUrl }: Service): Promise<number> {
  const text = await (await fetch(`${healthUrl}/metrics`)).text()
  return Number(/^tollward_node_sensor_calls_total\{[^}]*result="published"[^}]*\} (\d+)/m.exec(text)?.[1] ?? 0)
}

function rowsOf() {
  const row = (what: string, those: readonly Turn[]) => {
    const of = (pick: (one: Turn) => number) => rounded(median(those.map(pick)))
    return {
      ...{ what, perSecond: Math.round(of(({ perSecond }) => perSecond)) },
      nginxMicros: of(({ nginxMicros }) => nginxMicros),
      sensorMicros: of(({ sensorMicros }) => sensorMicros),
      publishedShare: of(({ publishedShare }) => publishedShare),
    }
  }
  const rows = [row('calls off', turns.off), row('calls on', turns.on)]
  const added = turns.on.map(({ nginxMicros }, round) => nginxMicros - (turns.off[round]?.nginxMicros ?? Number.NaN))
  const each = median(added) / CALLS_EACH_REQUEST
  const verdict = `at most ${MICROS_MAX}: ${each <= MICROS_MAX ? 'kept' : 'NOT KEPT'}`
  return [...rows, { what: `a call of OpenSSL costs its caller ${rounded(each)} µs more; ${verdict}` }]
}
