import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { cp, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { compile, ExactBlocks, HITS_TOLD, LAYOUT_VERSION, openPinnedMap } from '@tollward/libbpf'
import {
  eventually,
  freePort,
  type NetworkNamespace,
  networkNamespace,
  startNatsServer,
  startProcess,
  startService,
  temporaryDirectory,
} from '@tollward/testkit'
import type { Capability } from './adapters/capabilities.ts'
import { networkNamespaceInum } from './adapters/pins.ts'
import {
  BPF_DIRECTORY,
  type Held,
  HIT_LONG_AGO,
  hits,
  leaveOldSensor,
  OLD_RANGE,
  OLD_VERSION,
  otherLayout,
  RULE_SET_BEFORE,
} from './test-layouts.ts'
import { blocksOf, decidingBus, MAIN, pinDirectory, skip } from './test-node.ts'

/** Datagrams as fast as one thread sends them; the sender breathes between two rounds. */
const FLOOD = `const [, host, port] = process.argv
const socket = require('dgram').createSocket('udp4')
const round = () => {
  for (let left = 200; left > 0; left--) socket.send('x', port, host, left === 1 ? () => setImmediate(round) : undefined)
}
socket.bind(0, () => { console.log('sending'); round() })`
/** Enough that one unguarded millisecond would show. */
const DROPS_BETWEEN = 5000n

/** Counts the datagrams that reach this side. */
async function receiver(address: string) {
  const socket = createSocket('udp4')
  let received = 0
  socket.on('message', () => {
    received += 1
  })
  socket.bind(0, address)
  await once(socket, 'listening')
  return {
    port: socket.address().port,
    received: () => received,
    [Symbol.dispose]: () => void socket.close(),
  }
}

async function flood(from: NetworkNamespace, port: number) {
  const sender = await from.start(process.execPath, ['-e', FLOOD, from.hostAddress, String(port)])
  await sender.line(/^sending/)
  return sender
}

for (const exact of ['table', 'table of pairs', 'table of lines', 'hash'] as const)
  test(
    `an upgrade to another layout lets no packet of a blocked source pass, though there is no bus; from a ${exact}`,
    {
      skip,
    },
    () => upgrade(exact),
  )

async function upgrade(exact: Held): Promise<void> {
  await using cable = await networkNamespace()
  await using sources = await temporaryDirectory()
  using pins = pinDirectory()
  using target = await receiver(cable.hostAddress)
  const old = await otherLayout(sources.path, exact)
  leaveOldSensor(old, exact, pins.path, cable.hostDevice, cable.address)
  const [before, after] = [OLD_VERSION, LAYOUT_VERSION].map((version) =>
    join(pins.path, `v${version}_net${networkNamespaceInum()}`),
  )
  assert(before && after)
  await using sender = await flood(cable, target.port)
  await eventually(() => hits(before, cable.address, exact) > DROPS_BETWEEN, { what: 'the old programs drop' })
  await using sensor = await startProcess(process.execPath, [MAIN], {
    env: await environment(pins.path, cable.hostDevice, `nats://127.0.0.1:${await freePort()}`),
  })
  await sensor.line(/"hook":"xdp","on":true,"how":"adopted"/)
  const copied = exact === 'table of pairs' ? 2 : 1
  await sensor.line(new RegExp(`"block_exact":\\{"copied":${copied},"over":1,"left":0\\},"block_cidr4":\\{"copied":1,`))
  using opened = new DisposableStack()
  const map = (name: string) => opened.use(openPinnedMap(join(after, name)))
  assert.equal(
    map('block_cidr4').lookup(OLD_RANGE.key)?.readBigUInt64LE(8),
    HITS_TOLD,
    'its first drop is not told again',
  )
  if (exact === 'table of pairs') {
    const block = new ExactBlocks({ map }).lookup(HIT_LONG_AGO)
    assert.deepEqual([block?.readBigUInt64LE(8), block?.readUInt32LE(16)], [HITS_TOLD | 7n, 4711])
  }
  using lengths = openPinnedMap(join(after, 'block_lengths4'))
  assert.deepEqual(lengths.lookup(OLD_RANGE.place)?.readBigUInt64LE(), 1n << 8n, 'the range is looked for')
  using ruleSet = openPinnedMap(join(after, 'rule_set'))
  assert.deepEqual(ruleSet.lookup(Buffer.alloc(4)), RULE_SET_BEFORE, 'rules of the same layout go on too')
  const atUpgrade = hits(after, cable.address, 'today')
  assert(atUpgrade > DROPS_BETWEEN, 'what the block dropped before is not forgotten')
  await eventually(() => hits(after, cable.address, 'today') > atUpgrade + DROPS_BETWEEN, {
    what: 'the new programs drop',
  })
  await eventually(() => !existsSync(before), { what: 'the old maps are gone' })
  assert.equal(await sensor.stop(), 0)
  const atEnd = hits(after, cable.address, 'today')
  await eventually(() => hits(after, cable.address, 'today') > atEnd + DROPS_BETWEEN, {
    what: 'they drop on their own',
  })
  await sender.stop()
  assert.equal(target.received(), 0)
}

test('crashes, restarts and other sizes under load let no packet of a blocked source pass', { skip }, async () => {
  await using cable = await networkNamespace()
  await using nats = await startNatsServer()
  await using bus = await decidingBus(nats.url)
  using pins = pinDirectory()
  using target = await receiver(cable.hostAddress)
  await blocksOf(bus).add(cable.address)
  const env = await environment(pins.path, cable.hostDevice, nats.url)
  await using sensor = await startService('node-sensor', env)
  const directory = join(pins.path, `v${LAYOUT_VERSION}_net${networkNamespaceInum()}`)
  await using sender = await flood(cable, target.port)
  let dropped = 0n
  const dropsOn = (what: string) =>
    eventually(() => hits(directory, cable.address, 'today') > dropped + DROPS_BETWEEN, { what: `drops ${what}` })
  for (const how of ['kill', 'stop', 'kill'] as const) {
    dropped = hits(directory, cable.address, 'today')
    await dropsOn(`before ${how}`)
    await sensor[how]()
    dropped = hits(directory, cable.address, 'today')
    await dropsOn(`after ${how}`)
    // Once as it was, once with maps of another size, and back.
    const changes = how === 'stop' ? { TOLLWARD_BLOCKED_ADDRESSES_MAX: '1000', TOLLWARD_FLOWS_MAX: '5000' } : {}
    await sensor.start({ ...env, ...changes })
  }
  dropped = hits(directory, cable.address, 'today')
  await dropsOn('at the end')
  await sender.stop()
  assert.equal(target.received(), 0)
})

/** Programs that no kernel runs, beside those of the sensor: one by its tracepoint, one by the verifier. */
const REFUSED = `
SEC("tp_btf/no_such_tracepoint") int watch_nothing(void *context) { return 0; }
SEC("raw_tp/sys_enter") int watch_wrongly(void *context) { return *(volatile int *)8; }
`

test('what this kernel refuses is left out alone, with the reason, and the rest guards and counts', {
  skip,
}, async () => {
  await using cable = await networkNamespace()
  await using nats = await startNatsServer()
  await using bus = await decidingBus(nats.url)
  await using sources = await temporaryDirectory()
  using pins = pinDirectory()
  await cp(BPF_DIRECTORY, sources.path, { recursive: true, filter: (path) => !path.endsWith('/build') })
  const source = join(sources.path, 'sensor.bpf.c')
  await writeFile(source, `${await readFile(source, 'utf8')}${REFUSED}`)
  const object = await compile(sources.path, 'build/sensor.bpf.o')
  await using sensor = await startService('node-sensor', {
    ...(await environment(pins.path, cable.hostDevice, nats.url)),
    TOLLWARD_BPF_OBJECT: object,
  })
  const { capabilities } = JSON.parse(await sensor.line(/what this kernel offers/)) as { capabilities: Capability[] }
  const named = (name: string) => capabilities.find((capability) => capability.name === `tracepoint ${name}`)
  assert.match(named('watch_nothing')?.why ?? '', /^ESRCH: .*no_such_tracepoint.*left out$/)
  assert.match(named('watch_wrongly')?.why ?? '', /^EACCES: .*invalid mem access.*left out$/)
  assert.deepEqual([named('watch_nothing')?.on, named('watch_wrongly')?.on], [false, false])
  assert.equal(named('watch_handshake')?.on, true)
  using target = await receiver(cable.hostAddress)
  await blocksOf(bus).add(cable.address)
  const directory = join(pins.path, `v${LAYOUT_VERSION}_net${networkNamespaceInum()}`)
  await using _sender = await flood(cable, target.port)
  await eventually(() => hits(directory, cable.address, 'today') > 0n, { what: 'the block drops' })
})

test('detach takes off what another bpffs hides, and a sensor that starts takes it over', { skip }, async () => {
  await using node = await networkNamespace()
  using pins = pinDirectory()
  const env = { ...(await environment(pins.path, 'lo', 'nats://127.0.0.1:1')), TOLLWARD_HEALTH_PORT: '9406' }
  await using directory = await temporaryDirectory()
  const run = join(directory.path, 'run.sh')
  const sensor = `${process.execPath} ${MAIN}`
  const isOn = `ip -details link show lo | grep -q xdp && echo on || echo off`
  // Mount and network namespaces of its own: nobody else sees its mounts.
  await writeFile(
    run,
    `mount -t bpf none /sys/fs/bpf
start() { : > ${directory.path}/log; ${sensor} >> ${directory.path}/log & pid=$!; tail -n +1 --pid=$pid -F ${directory.path}/log 2>/dev/null | grep -qm1 '"hook":"egress","on":'; }
start; kill -9 $pid; wait $pid 2>/dev/null; ${isOn}
mount -t bpf none /sys/fs/bpf
ls /sys/fs/bpf | grep -c tollward
start; grep -c '"hook":"xdp","on":true,"how":"adopted"' ${directory.path}/log; kill -9 $pid; wait $pid 2>/dev/null; ${isOn}
mount -t bpf none /sys/fs/bpf
${sensor} detach; ${isOn}
${sensor} detach
`,
  )
  const command = [`--net=/run/netns/${node.name}`, 'unshare', '--mount', 'sh', run]
  await using steps = await startProcess('nsenter', command, { env })
  await steps.exited
  const [first, visible, adopted, second, said, after, again] = steps.lines
  assert.deepEqual([first, visible, adopted, second], ['on', '0', '1', 'on'], steps.lines.join('\n'))
  assert.match(said ?? '', /^nothing is pinned at .*; took off 2 programs whose pins could not be found/)
  assert.equal(after, 'off')
  assert.match(again ?? '', /^nothing is pinned at [^;]*$/)
})

test('detach leaves what is pinned in another mount namespace, though no sensor runs there', { skip }, async () => {
  await using cable = await networkNamespace()
  using pins = pinDirectory()
  const env = await environment(pins.path, cable.hostDevice, 'nats://127.0.0.1:1')
  await using sensor = await startProcess(process.execPath, [MAIN], { env })
  await sensor.line(/"hook":"egress","on":true/)
  await sensor.kill()
  const steps = `mount -t bpf none /sys/fs/bpf && ${process.execPath} ${MAIN} detach`
  await using elsewhere = await startProcess('unshare', ['--mount', 'sh', '-c', steps], { env })
  assert.equal(await elsewhere.exited, 0)
  assert.match(elsewhere.lines.join(), /^nothing is pinned at [^;]*$/)
  await using shown = await startProcess('ip', ['-details', 'link', 'show', cable.hostDevice])
  await shown.exited
  assert.match(shown.lines.join(), /xdp/)
})

async function environment(pins: string, interfaces: string, natsUrl: string) {
  return {
    PATH: process.env.PATH ?? '',
    TOLLWARD_NATS_URL: natsUrl,
    TOLLWARD_HEALTH_PORT: String(await freePort()),
    TOLLWARD_INTERFACES: interfaces,
    TOLLWARD_PIN_DIRECTORY: pins,
  }
}
