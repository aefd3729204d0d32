import assert from 'node:assert/strict'
import { existsSync, readdirSync, renameSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { connect } from '@nats-io/transport-node'
import { type Bus, connectBus, provision } from '@tollward/bus'
import { bucketContract, callerKey, parseRange, rangeKey, writeCaller } from '@tollward/contracts'
import { BlockSchema } from '@tollward/contracts/enforcement'
import { blockTarget, ExactBlocks, LAYOUT_VERSION, openPinnedMap, removePins } from '@tollward/libbpf'
import { type NetworkNamespace, requires } from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { networkNamespaceInum } from './adapters/pins.ts'

export const MAIN = join(import.meta.dirname, 'main.ts')

/** For node:test's option `skip`. */
export const skip: string | false = await requires({
  root: true,
  tools: ['nats-server', 'ip', 'clang', 'make', 'nsenter'],
  files: ['/usr/include/bpf/bpf_helpers.h', '/sys/kernel/btf/vmlinux'],
})

const PINS = '/sys/fs/bpf'
/** A blocked packet is not answered at all; many times what a handshake takes here. */
const CONNECT_TIMEOUT_MS = 400
const CLIENT = `const [, host, port] = process.argv
const socket = require('net').connect({ host, port })
socket.setTimeout(${CONNECT_TIMEOUT_MS}, () => { console.log('silence'); process.exit() })
socket.on('data', (data) => console.log(String(data))).on('error', (error) => console.log(error.code))`

let made = 0

/** A pin directory that no other test has; what is left in it goes with the test, or with the next if this one is killed. */
export function pinDirectory(): { path: string } & Disposable {
  for (const name of readdirSync(PINS)) {
    const pid = /^tollward-sensor-test-(\d+)-/.exec(name)?.[1]
    if (pid !== undefined && !existsSync(`/proc/${pid}`)) removeLeft(join(PINS, name))
  }
  const path = `${PINS}/tollward-sensor-test-${process.pid}-${++made}`
  return { path, [Symbol.dispose]: () => void removePins(path) }
}

/** Removes what a killed test left, unless another one that starts now does. */
function removeLeft(path: string): void {
  const claimed = `${PINS}/tollward-sensor-test-${process.pid}-left-${++made}`
  try {
    renameSync(path, claimed)
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return
    throw error
  }
  removePins(claimed)
}

/** Makes streams and buckets; again after each start of the server, which forgets the streams in memory. */
export async function provisionBus(url: string): Promise<void> {
  const provisioner = await connect({ servers: url })
  await provision(provisioner)
  await provisioner.close()
}

/** A bus with everything on it, as the service that decides blocks sees it. */
export async function decidingBus(url: string): Promise<Bus> {
  await provisionBus(url)
  return connectBus({ servers: url, name: 'sensor-ingest', log: pino({ level: 'silent' }), registry: new Registry() })
}

/** Blocks of the bucket. */
export function blocksOf(bus: Bus) {
  const bucket = bus.bucket(bucketContract(BlockSchema))
  return {
    add: async (cidr: string, forMs = 600_000, more: MessageInitShape<typeof BlockSchema> = {}) => {
      const range = rangeOf(cidr)
      const nowMs = Date.now()
      const value = create(BlockSchema, {
        ...{ format: 1, ...range, reason: 'test', decidedBy: 'detector:test' },
        ...{ decidedAt: timestampFromMs(nowMs), expiresAt: timestampFromMs(nowMs + forMs) },
        ...more,
      })
      await bucket.put(rangeKey(range), value, { expiresAtMs: nowMs + forMs })
    },
    addClient: async (clientId: string) => {
      const caller = { kind: 'client', value: clientId } as const
      const expiresAtMs = Date.now() + 600_000
      const end = { expiresAt: timestampFromMs(expiresAtMs) }
      const value = create(BlockSchema, { format: 2, caller: writeCaller(caller), reason: 'test', ...end })
      await bucket.put(callerKey(caller), value, { expiresAtMs })
    },
    lift: (cidr: string) => bucket.remove(rangeKey(rangeOf(cidr))),
    liftAll: async () => {
      for (const { key } of await bucket.entries()) await bucket.remove(key)
    },
  }
}

/** Whether the kernel's map has the block, whoever runs. */
export function isInKernel(pins: string, cidr: string): boolean {
  const target = blockTarget(rangeOf(cidr))
  const directory = join(pins, `v${LAYOUT_VERSION}_net${networkNamespaceInum()}`)
  using opened = new DisposableStack()
  const open = (name: string) => opened.use(openPinnedMap(join(directory, name)))
  const map = target.map === 'block_exact' ? new ExactBlocks({ map: open }) : open(target.map)
  return map.lookup(target.key) !== undefined
}

/** A server on this side of the cables; it greets and hangs up. */
export async function greeter(): Promise<{ port: number } & AsyncDisposable> {
  const server = createServer((socket) => socket.on('error', () => undefined).end('served')).listen(0, '::')
  await new Promise((resolve) => server.once('listening', resolve))
  const address = server.address()
  assert(address && typeof address === 'object')
  return { port: address.port, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() }
}

/** What somebody in the namespace sees who connects: `served`, `silence` or the name of an error. */
export async function tryFrom(namespace: NetworkNamespace, port: number, to = namespace.hostAddress): Promise<string> {
  return (await namespace.exec(process.execPath, ['-e', CLIENT, to, String(port)])).trim()
}

/** A sample of what the service at this URL exports; 0 if there is none. */
export async function metric(healthUrl: string, sample: string): Promise<number> {
  const text = await (await fetch(`${healthUrl}/metrics`)).text()
  const line = text.split('\n').find((candidate) => candidate.startsWith(`${sample} `))
  return Number(line?.split(' ')[1] ?? 0)
}

/** Why the service is not ready; none: it is. */
export async function reasons(healthUrl: string): Promise<string[]> {
  const response = await fetch(`${healthUrl}/healthz/ready`)
  return ((await response.json()) as { reasons: string[] }).reasons
}

function rangeOf(cidr: string) {
  const range = parseRange(cidr)
  assert(range, `${cidr} is a range`)
  return range
}
