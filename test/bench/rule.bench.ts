import { statSync } from 'node:fs'
import process from 'node:process'
import { setTimeout as delay, setImmediate as turn } from 'node:timers/promises'
import { create } from '@bufbuild/protobuf'
import { timestampNow } from '@bufbuild/protobuf/wkt'
import { connect, type NatsConnection } from '@nats-io/transport-node'
import { type Bucket, connectBus, provision } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { type StoredDocument, StoredDocumentSchema } from '@tollward/contracts/document'
import { API_VERSION, documentKey, STORED_FORMAT } from '@tollward/documents'
import { type BpfMap, LAYOUT_VERSION, openPinnedMap, removePins } from '@tollward/libbpf'
import { eventually, freePort, networkNamespace, requires, startNatsServer, startService } from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { publishAndReceive } from './bare-nats.ts'
import { percentile } from './latencies.ts'

/** One line of the table; milliseconds. */
export interface Row {
  readonly [column: string]: string | number
}

export const name = 'rule: kernel rule written to the bucket → the set with it in force'

const CHANGES = 100
/** A set waits until nobody can still read the one before the last: what changes sooner is in the next set together. */
const PAUSE_MS = 150
/** Rules that are there while one is changed, each of so many source ranges. */
const LOADS = [
  { rules: 1, sources: 1 },
  { rules: 100, sources: 10 },
  { rules: 1000, sources: 10 },
] as const
interface Bench {
  readonly sender: NatsConnection
  readonly receiver: NatsConnection
  readonly documents: Bucket<StoredDocument>
  readonly set: BpfMap
}

const ONLY_KEY = Buffer.alloc(4)

/** Writes a rule again and again, and looks each time until the kernel's maps have the set with it. */
export async function run(): Promise<{ rows: Row[] }> {
  const missing = await requires({ root: true, tools: ['nats-server', 'ip', 'clang', 'make'] })
  if (missing !== false) return { rows: [{ what: `not run: ${missing}` }] }
  await using resources = new AsyncDisposableStack()
  const nats = resources.use(
    await startNatsServer({
      config: 'jetstream { sync_interval: always, max_memory_store: 2GB, max_file_store: 64GB }',
    }),
  )
  const [sender, receiver] = [await connect({ servers: nats.url }), await connect({ servers: nats.url })]
  resources.defer(async () => {
    await sender.close()
    await receiver.close()
  })
  await provision(sender)
  const log = pino({ level: 'silent' })
  const bus = resources.use(await connectBus({ servers: nats.url, name: 'admin-api', log, registry: new Registry() }))
  const cable = resources.use(await networkNamespace())
  const pins = `/sys/fs/bpf/tollward-bench-${process.pid}`
  resources.defer(() => void removePins(pins))
  resources.use(
    await startService('node-sensor', {
      PATH: process.env.PATH,
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_INTERFACES: cable.hostDevice,
      TOLLWARD_PIN_DIRECTORY: pins,
    }),
  )
  const inode = statSync('/proc/self/ns/net').ino
  const set = resources.use(openPinnedMap(`${pins}/v${LAYOUT_VERSION}_net${inode}/rule_set`))
  const documents = bus.bucket(bucketContract(StoredDocumentSchema))
  const bench: Bench = { sender, receiver, documents, set }
  const rows: Row[] = []
  let there = 0
  for (const { rules, sources } of LOADS) {
    while (there < rules) await write(documents, `load${there}`, sourcesOf(there++, sources))
    await settled(set)
    rows.push({ rules, prefixes: rules * sources, ...(await measure(bench, sources)) })
  }
  return { rows }
}

/** Milliseconds from before the write until the kernel has another set. */
async function measure({ sender, receiver, documents, set }: Bench, sources: number): Promise<Row> {
  const bareMs: number[] = []
  const tookMs: number[] = []
  for (let change = 0; change < CHANGES; change++) {
    bareMs.push(await publishAndReceive(sender, receiver))
    const before = stateOf(set)
    const beganMs = performance.now()
    const written = write(documents, 'load0', sourcesOf(change % 2 === 0 ? 2000 : 0, sources))
    while (stateOf(set) === before) await turn()
    tookMs.push(performance.now() - beganMs)
    await written
    await delay(PAUSE_MS)
  }
  const at = (latencies: number[], share: number) => Number(percentile(latencies, share).toFixed(2))
  const bare = { 'bare NATS p50 ms': at(bareMs, 0.5), p99: at(bareMs, 0.99) }
  return { ...bare, 'in force p50 ms': at(tookMs, 0.5), 'p99 ms': at(tookMs, 0.99), 'max ms': at(tookMs, 1) }
}

/** Once no set has taken another's place for a while. */
async function settled(set: BpfMap): Promise<void> {
  let last = ''
  let sinceMs = performance.now()
  const isQuiet = () => {
    const now = stateOf(set)
    if (now !== last) sinceMs = performance.now()
    last = now
    return performance.now() - sinceMs > 1000
  }
  await eventually(isQuiet, { what: 'the rules are in force', timeoutMs: 60_000 })
}

function stateOf(set: BpfMap): string {
  return set.lookup(ONLY_KEY)?.toString('hex') ?? ''
}

function sourcesOf(rule: number, count: number): string[] {
  return Array.from({ length: count }, (_, index) => `10.${rule >> 4}.${((rule & 15) << 4) | index}.0/24`)
}

async function write(documents: Bucket<StoredDocument>, rule: string, sources: readonly string[]): Promise<void> {
  const spec = { direction: 'ingress', protocol: 'tcp', sources, ports: [23], action: 'drop' }
  const document = { apiVersion: API_VERSION, kind: 'KernelRule', metadata: { name: rule }, spec }
  const value = create(StoredDocumentSchema, {
    ...{ format: STORED_FORMAT, kind: 'KernelRule', name: rule, yaml: JSON.stringify(document) },
    ...{ appliedBy: 'bench', appliedAt: timestampNow() },
  })
  await documents.put(documentKey('KernelRule', rule), value)
}
