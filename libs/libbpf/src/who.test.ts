import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { readFileSync, statSync } from 'node:fs'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { eventually, type NetworkNamespace, networkNamespace, requires } from '@tollward/testkit'
import { type Attachment, attachEgress, attachTracepoint, attachXdp, interfaceIndex } from './attach.ts'
import { drainKernelDrops, FlowDrain, Generations } from './flow-drain.ts'
import { CGROUP_OF_MEMORY_HIERARCHY, type FlowRecord, type KernelDropRecord } from './flow-layout.ts'
import { iterate } from './iterate.ts'
import { dropReasons } from './kernel-types.ts'
import { address, ETHERTYPE, ethernet, ipv4, TCP_FLAG, tcp } from './test-packets.ts'
import { loadSensor, needsKernel, type TestSensor } from './test-sensor.ts'

const skip = needsKernel || (await requires({ tools: ['ip', 'ss'] }))
const WATCHERS = ['watch_handshake', 'watch_send', 'watch_receive'] as const
/** Says its port, then answers whatever comes with the same. */
const ECHO = `const server = require('net').createServer((socket) => socket.on('error', () => undefined).pipe(socket))
server.listen(0, process.argv[1], () => console.log(server.address().port))`
/** Takes a connection over from its parent, and answers on it. */
const HEIR = `process.on('message', (_, socket) => { socket.write('from the child'); process.send('sent') })`

const clientOf = (host: string, port: number) =>
  `require('net').connect(${port}, '${host}').on('error', () => undefined).on('data', () => undefined).write('question')`
const senderTo = (host: string, port: number, count: number) => `const socket = require('dgram').createSocket('udp4')
let left = ${count}
const next = () => (left-- > 0 ? socket.send('x', ${port}, '${host}', next) : socket.close())
next()`
const repeatTo = (host: string, port: number) => `const socket = require('dgram').createSocket('udp4')
socket.on('error', () => undefined)
socket.connect(${port}, '${host}', () => setInterval(() => socket.send('x', () => console.log('sent')), 10))`
const talkTo = (host: string, port: number) => `let answers = 0
const socket = require('net').connect(${port}, '${host}').on('error', () => undefined)
socket.on('data', () => (++answers === 4 ? console.log('fourth answer') : socket.write('x'))).write('x')`
const fromNewPortsTo = (host: string, port: number) => `const { ino } = require('fs').statSync('/proc/self/ns/pid')
console.log('in', process.pid, ino)
setInterval(() => {
  const socket = require('dgram').createSocket('udp4')
  let left = 5
  const next = () => (left-- > 0 ? socket.send('x', next) : socket.close())
  socket.on('error', () => undefined).connect(${port}, '${host}', next)
}, 200)`
const run = promisify(execFile)

/** A sensor on the cable between this namespace, whose connections it watches, and another. */
class Watched implements AsyncDisposable {
  readonly sensor: TestSensor
  readonly other: NetworkNamespace
  readonly #attachments: Attachment[]
  readonly #drain: FlowDrain
  readonly #drops: Generations

  static async start(programs: readonly string[], other: NetworkNamespace, mode?: 'generic'): Promise<Watched> {
    const sensor = await loadSensor()
    sensor.configure({ netnsInum: statSync('/proc/self/ns/net').ino })
    const ifindex = interfaceIndex(other.hostDevice)
    assert(ifindex)
    const xdp = attachXdp(sensor.object.program('xdp_guard'), { ifindex, ...(mode ? { mode } : {}) })
    const egress = attachEgress(sensor.object.program('guard_egress'), { ifindex })
    const traced = programs.map((name) => attachTracepoint(sensor.object.program(name)))
    return new Watched(sensor, other, [xdp, egress, ...traced])
  }

  constructor(sensor: TestSensor, other: NetworkNamespace, attachments: Attachment[]) {
    this.sensor = sensor
    this.other = other
    this.#attachments = attachments
    const map = (name: string) => sensor.object.map(name)
    this.#drain = new FlowDrain(map('active_flows'), map('flows_a'), map('flows_b'))
    this.#drops = new Generations(map('active_kernel_drops'), map('kernel_drops_a'), map('kernel_drops_b'))
  }

  /** What was counted of the port since the last call, by direction. */
  async flows(port: number): Promise<Partial<Record<FlowRecord['direction'], FlowRecord>>> {
    const found: Partial<Record<FlowRecord['direction'], FlowRecord>> = {}
    for await (const batch of this.#drain.drain())
      for (const flow of batch)
        if (flow.sourcePort === port || flow.destinationPort === port) found[flow.direction] = flow
    return found
  }

  drops(): Promise<KernelDropRecord[]> {
    return drainKernelDrops(this.#drops)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const attachment of this.#attachments) attachment.close()
    this.sensor[Symbol.dispose]()
  }
}

test('a connection that this process opens is its own in both directions, to its end', {
  skip,
}, async () => {
  await using other = await networkNamespace()
  await using watched = await Watched.start(WATCHERS, other)
  await using echo = await startEcho(other)
  const socket = await openTo(other, echo.port)
  await exchange(socket, 40)
  const open = await watched.flows(echo.port)
  for (const flow of both(open)) {
    assert.deepEqual(flow.owner, ownProcess(), flow.direction)
    assert.equal(flow.established, true)
    assert.equal(flow.closed, false)
    assert(flow.rttMicros > 0)
  }
  await hangUp(socket)
  const closed = await eventually(
    async () => {
      const flows = await watched.flows(echo.port)
      return flows.egress?.closed ? flows : undefined
    },
    { what: 'the flow says that it was closed' },
  )
  assert.deepEqual(closed.egress?.owner, ownProcess())
})

test('the round-trip time of a flow is the one that the kernel itself shows', { skip }, async () => {
  await using other = await networkNamespace()
  await using watched = await Watched.start(WATCHERS, other)
  await using echo = await startEcho(other)
  const socket = await openTo(other, echo.port)
  // Each answer changes it, and it is told at one use in 32: the medians agree where no single one need.
  const [told, shown]: [number[], number[]] = [[], []]
  for (let round = 0; round < 40; round++) {
    await exchange(socket, 1)
    told.push((await watched.flows(echo.port)).egress?.rttMicros ?? 0)
    shown.push(await rttOf(echo.port))
  }
  const share = median(told) / median(shown)
  assert(share > 0.4 && share < 2.5, `${median(told)} µs, where the kernel shows ${median(shown)} µs`)
  socket.destroy()
})

test('a connection that this process accepts is its own, by whichever process inherits it later', {
  skip,
}, async () => {
  await using other = await networkNamespace()
  await using watched = await Watched.start(WATCHERS, other)
  using server = await listen(other.hostAddress)
  const accepted = once(server.server, 'connection')
  const client = await other.start(process.execPath, ['-e', clientOf(other.hostAddress, server.port)])
  await using _client = client
  const [socket] = (await accepted) as [Socket]
  await once(socket, 'data')
  socket.write('answer')
  const told = await eventually(
    async () => {
      socket.write('more')
      const flows = await watched.flows(server.port)
      return flows.egress?.owner && flows.ingress?.owner ? flows : undefined
    },
    { what: 'the flows say whose they are' },
  )
  for (const flow of both(told)) {
    assert.deepEqual(flow.owner, ownProcess(), flow.direction)
    assert.equal(flow.established, true)
  }
  const heir = spawn(process.execPath, ['-e', HEIR], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  try {
    heir.send('yours', socket)
    await once(heir, 'message')
    const inherited = await eventually(
      async () => {
        const flows = await watched.flows(server.port)
        return flows.egress?.owner?.processId === heir.pid ? flows : undefined
      },
      { what: 'the flow is of the child' },
    )
    assert.equal(inherited.egress?.established, true)
  } finally {
    heir.kill('SIGKILL')
  }
})

test('a connection older than the programs says whose it is, and that its handshake was completed', {
  skip,
}, async () => {
  await using other = await networkNamespace()
  await using echo = await startEcho(other)
  const socket = await openTo(other, echo.port)
  await exchange(socket, 1)
  // Without those that learn from use: only the list is left.
  await using watched = await Watched.start(['watch_handshake'], other)
  assert.equal(await iterate(watched.sensor.object.program('list_connections')), '')
  await exchange(socket, 1)
  for (const flow of both(await watched.flows(echo.port))) {
    assert.deepEqual(flow.owner, ownProcess(), flow.direction)
    assert.equal(flow.established, true)
    assert(flow.rttMicros > 0)
  }
  socket.destroy()
})

test('without the tracepoints of Linux 6.3 a connection is known at its first receive', { skip }, async () => {
  await using other = await networkNamespace()
  await using echo = await startEcho(other)
  const socket = await openTo(other, echo.port)
  await using watched = await Watched.start(['watch_receive_older'], other)
  await exchange(socket, 2)
  for (const flow of both(await watched.flows(echo.port))) {
    assert.deepEqual(flow.owner, ownProcess(), flow.direction)
    assert.equal(flow.established, true)
  }
  socket.destroy()
})

test('the last packets of a closed connection are its own; a SYN from the same ports is not', { skip }, async () => {
  await using other = await networkNamespace()
  await using watched = await Watched.start(WATCHERS, other)
  await using echo = await startEcho(other)
  const socket = await openTo(other, echo.port)
  await exchange(socket, 1)
  const ports = { sourcePort: echo.port, destinationPort: socket.localPort ?? 0 }
  await hangUp(socket)
  await eventually(async () => (await watched.flows(echo.port)).egress?.closed, { what: 'the connection is closed' })
  const arrive = (flags: number) =>
    watched.sensor.judge(
      ethernet(
        ETHERTYPE.ipv4,
        ipv4({ source: other.address, destination: other.hostAddress, payload: tcp({ ...ports, flags }) }),
      ),
    )
  await eventually(async () => Object.keys(await watched.flows(echo.port)).length === 0, {
    what: 'its last packet is drained',
  })
  arrive(TCP_FLAG.fin | TCP_FLAG.ack)
  const tail = (await watched.flows(echo.port)).ingress
  assert.deepEqual([tail?.owner, tail?.closed, tail?.established], [ownProcess(), true, true])
  arrive(TCP_FLAG.syn)
  const anew = (await watched.flows(echo.port)).ingress
  assert.deepEqual([anew?.owner, anew?.closed, anew?.established], [undefined, false, false])
})

test('packets of a connected UDP socket are those of its process; the handshake of none is claimed', {
  skip,
}, async () => {
  await using other = await networkNamespace()
  await using watched = await Watched.start(WATCHERS, other)
  // Nobody listens there, which comes back as an error.
  const socket = createSocket('udp4').on('error', () => undefined)
  socket.unref().connect(5353, other.address)
  await once(socket, 'connect')
  await new Promise((sent) => socket.send('question', sent))
  const egress = await eventually(async () => (await watched.flows(5353)).egress, { what: 'the packet left' })
  assert.deepEqual([egress.owner, egress.packets, egress.established], [ownProcess(), 1n, false])
  socket.close()
})

test('what crosses the cable from another namespace is its process’s there; nothing vouches for its source', {
  skip,
}, async () => {
  await using other = await networkNamespace()
  await using watched = await Watched.start(WATCHERS, other)
  const port = await freeUdpPort(other.hostAddress)
  await using sender = await other.start(process.execPath, ['-e', repeatTo(other.hostAddress, port)])
  await sender.line(/sent/)
  const told = await eventually(
    async () => {
      const { ingress } = await watched.flows(port)
      return ingress?.owner ? ingress : undefined
    },
    { what: 'the flow has an owner' },
  )
  assert.equal(told.owner?.processId, sender.pid)
  assert.equal(told.established, false)
  // Both ends are known: the one in this namespace is meant, and its handshake counts.
  using server = await listen(other.hostAddress)
  server.server.on('connection', (socket) => socket.pipe(socket))
  await using client = await other.start(process.execPath, ['-e', talkTo(other.hostAddress, server.port)])
  await client.line(/fourth answer/)
  for (const flow of both(await watched.flows(server.port))) {
    assert.deepEqual(flow.owner, ownProcess(), flow.direction)
    assert.equal(flow.established, true)
  }
})

test('a process is told by the number that it has where the sensor lives, and by none where it cannot be seen', {
  skip,
}, async () => {
  await using other = await networkNamespace()
  await using watched = await Watched.start(WATCHERS, other)
  const port = await freeUdpPort(other.hostAddress)
  const script = fromNewPortsTo(other.hostAddress, port)
  const inside = ['--pid', '--fork', '--mount-proc', '--kill-child', process.execPath, '-e', script]
  await using sender = await other.start('unshare', inside)
  const [, pid, inum] = (await sender.line(/^in /)).split(' ').map(Number)
  assert(pid !== undefined && inum !== undefined && pid !== sender.pid)
  const isTold = async (processId: number) => (await watched.flows(port)).ingress?.owner?.processId === processId
  const netnsInum = statSync('/proc/self/ns/net').ino
  watched.sensor.configure({ netnsInum, pidnsInum: inum })
  await eventually(() => isTold(pid), { what: 'it is told by its number in its namespace' })
  // No PID namespace has that number.
  watched.sensor.configure({ netnsInum, pidnsInum: netnsInum })
  await eventually(() => isTold(0), { what: 'it has no number where it cannot be seen' })
  // The first process of a namespace heeds no other signal.
  await sender.kill()
})

test('what the kernel throws away is counted by its reason and 5-tuple; what the guard drops is not', {
  skip,
}, async () => {
  await using other = await networkNamespace()
  await using watched = await Watched.start(['watch_kernel_drops'], other, 'generic')
  const closedPort = await freeUdpPort(other.hostAddress)
  const send = (count: number) => other.exec(process.execPath, ['-e', senderTo(other.hostAddress, closedPort, count)])
  await send(3)
  const isOurs = ({ destinationPort }: KernelDropRecord) => destinationPort === closedPort
  const dropped = (await watched.drops()).filter(isOurs)
  const packets = dropped.reduce((sum, drop) => sum + drop.packets, 0n)
  assert.equal(packets, 3n)
  for (const drop of dropped) {
    assert.equal(dropReasons().get(drop.reason), 'NO_SOCKET')
    assert.deepEqual(drop.source, address(other.address))
    assert.deepEqual(drop.destination, address(other.hostAddress))
    assert.equal(drop.protocol, 17)
  }
  const key = Buffer.alloc(4)
  key.writeUInt32LE(dropped[0]?.reason ?? 0)
  assert(watched.sensor.object.map('drop_totals').sumOfCpus(key) >= 3n)
  watched.sensor.block(other.address)
  await send(5)
  assert((watched.sensor.counters().droppedExact ?? 0) >= 5)
  assert.deepEqual(
    (await watched.drops()).filter(({ source }) => Buffer.compare(source, address(other.address)) === 0),
    [],
  )
})

/** Of this process, by /proc and cgroupfs. */
function ownProcess(): FlowRecord['owner'] {
  const processName = readFileSync('/proc/self/comm', 'utf8').trim()
  const groups = readFileSync('/proc/self/cgroup', 'utf8')
    .trim()
    .split('\n')
    .map((line) => line.split(':'))
  const unified = groups.find(([number]) => number === '0')?.[2]
  const memory = groups.find(([, controllers]) => controllers?.split(',').includes('memory'))?.[2]
  const inode = (path: string) => statSync(path, { bigint: true }).ino
  if (memory === undefined || (unified !== undefined && unified !== '/')) {
    const mount = mountPoint(/ - cgroup2 /)
    return { processId: process.pid, processName, cgroupId: inode(`${mount}${unified}`) }
  }
  const mount = mountPoint(/ - cgroup .*\bmemory\b/)
  return { processId: process.pid, processName, cgroupId: inode(`${mount}${memory}`) | CGROUP_OF_MEMORY_HIERARCHY }
}

function mountPoint(kind: RegExp): string {
  const line = readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .find((text) => kind.test(text))
  assert(line, `a mount of ${kind}`)
  return line.split(' ')[4] ?? ''
}

function both({ ingress, egress }: Partial<Record<FlowRecord['direction'], FlowRecord>>): FlowRecord[] {
  assert(ingress && egress, 'both directions were seen')
  return [ingress, egress]
}

async function startEcho(other: NetworkNamespace): Promise<AsyncDisposable & { readonly port: number }> {
  const child = await other.start(process.execPath, ['-e', ECHO, other.address])
  const port = Number(await child.line(/^\d+$/))
  return { port, [Symbol.asyncDispose]: () => child[Symbol.asyncDispose]() }
}

async function openTo(other: NetworkNamespace, port: number): Promise<Socket> {
  const socket = connect({ host: other.address, port }).unref()
  await once(socket, 'connect')
  return socket
}

async function exchange(socket: Socket, rounds: number): Promise<void> {
  for (let round = 0; round < rounds; round++) {
    const answered = once(socket, 'data')
    socket.write('ping')
    await answered
  }
}

async function hangUp(socket: Socket): Promise<void> {
  const closed = once(socket, 'close')
  socket.end()
  await closed
}

async function listen(host: string): Promise<Disposable & { readonly server: Server; readonly port: number }> {
  const server = createServer().listen(0, host).unref()
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return { server, port, [Symbol.dispose]: () => void server.close() }
}

async function freeUdpPort(host: string): Promise<number> {
  const socket = createSocket('udp4').bind(0, host)
  await once(socket, 'listening')
  const { port } = socket.address()
  socket.close()
  return port
}

/** Smoothed round-trip time of the connection to this port, as ss shows it. */
async function rttOf(port: number): Promise<number> {
  const { stdout } = await run('ss', ['-tinOH', 'dst', `:${port}`])
  const millis = /\brtt:([\d.]+)/.exec(stdout)?.[1]
  assert(millis, `a round-trip time in ${stdout}`)
  return Number(millis) * 1000
}

function median(values: readonly number[]): number {
  return values.toSorted((one, other) => one - other)[values.length >> 1] ?? 0
}
