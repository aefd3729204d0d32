import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { acquireNatsServer } from '@tollward/acquire'
import { contract } from '@tollward/contracts'
import { type Flow, FlowObservedSchema } from '@tollward/contracts/sensor'
import {
  eventually,
  freePort,
  networkNamespace,
  startNatsServer,
  startProcess,
  startService,
  temporaryDirectory,
} from '@tollward/testkit'
import { decidingBus, MAIN, pinDirectory, provisionBus, reasons, skip } from './test-node.ts'

const NATS_PORT = 4222
const HEALTH_PORT = 9406
const TCP = 6
/** Another client of the bus on the same node: says hello, and which port it has. */
const CLIENT = `const socket = require('net').connect(${NATS_PORT}, '127.0.0.1', () => console.log('port ' + socket.localPort))
setInterval(() => socket.write('PING\\r\\n'), 20)`

test('on lo the sensor leaves its own connection to the bus out of the flows, also after a reconnection, and no other', {
  skip,
}, async () => {
  await using node = await networkNamespace()
  await using store = await temporaryDirectory()
  using pins = pinDirectory()
  // Only the network is the namespace's: the pins are in the bpffs of everybody.
  const inside = (command: string, ...args: string[]) =>
    startProcess('nsenter', [`--net=/run/netns/${node.name}`, command, ...args], { env: environment })
  const environment = {
    PATH: process.env.PATH ?? '',
    TOLLWARD_HEALTH_HOST: '0.0.0.0',
    TOLLWARD_HEALTH_PORT: String(HEALTH_PORT),
    TOLLWARD_INTERFACES: 'lo',
    TOLLWARD_PIN_DIRECTORY: pins.path,
    TOLLWARD_DRAIN_INTERVAL_MS: '50',
  }
  const nats = await acquireNatsServer()
  const config = join(store.path, 'nats.conf')
  // Without limits the server offers a share of the free disk, which need not hold what the topology reserves.
  await writeFile(config, `jetstream { store_dir: "${store.path}", max_memory_store: 2GB, max_file_store: 64GB }\n`)
  const startNats = () =>
    inside(nats.command, ...nats.args, '--addr', '0.0.0.0', '--port', String(NATS_PORT), '--config', config)
  await using server = await startNats()
  await server.line(/Server is ready/)
  const url = `nats://${node.address}:${NATS_PORT}`
  await using bus = await decidingBus(url)
  const flows: Flow[] = []
  await using _following = await bus.follow(contract(FlowObservedSchema), 'beginning', (message) => {
    flows.push(...message.flows)
  })
  await using _sensor = await inside(process.execPath, MAIN)
  const health = `http://${node.address}:${HEALTH_PORT}`
  const isReady = () => eventually(async () => (await reasons(health)).length === 0, { what: 'the sensor is ready' })
  await isReady()
  const onlyTheOtherIsSeen = async () => {
    flows.length = 0
    await using client = await inside(process.execPath, '-e', CLIENT)
    const port = Number((await client.line(/^port/)).split(' ')[1])
    const ofClient = () => flows.filter(({ sourcePort }) => sourcePort === port).length
    await eventually(() => ofClient() >= 20, { what: 'the other client is seen often' })
    const connected = flows.filter(
      (flow) => flow.protocol === TCP && flow.destinationPort === NATS_PORT && flow.established,
    )
    assert.deepEqual([...new Set(connected.map(({ sourcePort }) => sourcePort))], [port])
  }
  await onlyTheOtherIsSeen()

  await server.stop()
  await using again = await startNats()
  await again.line(/Server is ready/)
  await provisionBus(url)
  await isReady()
  await onlyTheOtherIsSeen()

  await using detach = await startProcess(process.execPath, [MAIN, 'detach'], {
    env: { TOLLWARD_PIN_DIRECTORY: pins.path },
  })
  assert.equal(await detach.exited, 0)
  assert.match(
    detach.lines.join(),
    /^removed 0 links, .* stay: they are of network namespaces in which processes live$/,
  )
  assert(existsSync(pins.path))
})

test('what cannot be attached is a reason not to be ready; the rest works, and an interface is attached when it comes', {
  skip,
}, async () => {
  await using cable = await networkNamespace()
  await using nats = await startNatsServer()
  await using _bus = await decidingBus(nats.url)
  using firstPins = pinDirectory()
  using secondPins = pinDirectory()
  const environment = async (pins: string, interfaces: string) => ({
    PATH: process.env.PATH ?? '',
    TOLLWARD_NATS_URL: nats.url,
    TOLLWARD_HEALTH_PORT: String(await freePort()),
    TOLLWARD_INTERFACES: interfaces,
    TOLLWARD_PIN_DIRECTORY: pins,
  })
  await using first = await startService('node-sensor', await environment(firstPins.path, cable.hostDevice))
  const later = `twl${process.pid}`
  const env = await environment(secondPins.path, `${cable.hostDevice},${later}`)
  await using _second = await startProcess(process.execPath, [MAIN], { env })
  const url = `http://127.0.0.1:${env.TOLLWARD_HEALTH_PORT}`
  const kernelReason = async () => (await reasons(url)).find((reason) => reason.startsWith('kernel: '))
  const missing = await eventually(kernelReason, { what: 'it is not ready' })
  assert.match(missing, new RegExp(`xdp on ${cable.hostDevice}: .*EBUSY`))
  assert.doesNotMatch(missing, new RegExp(`egress on ${cable.hostDevice}`))
  assert.match(missing, new RegExp(`xdp on ${later}: there is no such interface`))

  await using stack = new AsyncDisposableStack()
  await ip('link', 'add', later, 'type', 'veth', 'peer', 'name', `${later}p`)
  stack.defer(() => ip('link', 'delete', later))
  await eventually(async () => !(await kernelReason())?.includes(later), { what: 'the new interface is attached' })
  assert.deepEqual(await reasons(first.healthUrl), [])
})

async function ip(...args: string[]): Promise<void> {
  await using run = await startProcess('ip', args)
  assert.equal(await run.exited, 0, run.lines.join())
}

test('without root the sensor ends with a sentence that says so, and check does too', { skip }, async () => {
  const asNobody = async (...args: string[]) => {
    const nobody = ['--reuid', '65534', '--regid', '65534', '--clear-groups']
    // The repository may be where only root looks; being able to read it is no right of root's that the sensor needs.
    const reader = ['--inh-caps', '+dac_read_search', '--ambient-caps', '+dac_read_search']
    const run = await startProcess('setpriv', [...nobody, ...reader, process.execPath, MAIN, ...args], {
      env: { PATH: process.env.PATH ?? '' },
    })
    return { code: await run.exited, said: run.lines.join('\n') }
  }
  const root = /^it needs root: only root may load programs into the kernel/
  const checked = await asNobody('check')
  assert.equal(checked.code, 3)
  assert.match(checked.said, root)
  const started = await asNobody()
  assert.equal(started.code, 2)
  assert.match(started.said, root)
})

test('check says nothing where the sensor can run, and names an object that is not there', { skip }, async () => {
  const check = async (env: Record<string, string>) => {
    const run = await startProcess(process.execPath, [MAIN, 'check'], { env: { PATH: process.env.PATH ?? '', ...env } })
    return { code: await run.exited, said: run.lines.join('\n') }
  }
  assert.deepEqual(await check({}), { code: 0, said: '' })
  const { code, said } = await check({ TOLLWARD_BPF_OBJECT: '/nowhere.o' })
  assert.equal(code, 3)
  assert.equal(said, 'it needs the file /nowhere.o (TOLLWARD_BPF_OBJECT)')
})

test('a bpffs that the sensor mounted goes with detach', { skip }, async () => {
  const script = `
import { openPins } from '${import.meta.dirname}/adapters/pins.ts'
openPins('/sys/fs/bpf/tollward')`
  await using temporary = await temporaryDirectory()
  const file = join(temporary.path, 'open.ts')
  await writeFile(file, script)
  // A mount namespace of its own: nobody else sees its mounts.
  const steps = `umount -l /sys/fs/bpf; ${process.execPath} ${file} && stat -f -c %T /sys/fs/bpf &&
    ${process.execPath} ${MAIN} detach; stat -f -c %T /sys/fs/bpf`
  await using run = await startProcess('unshare', ['--mount', 'sh', '-c', steps], {
    env: { PATH: process.env.PATH ?? '' },
  })
  assert.equal(await run.exited, 0)
  const [mounted, removed, after] = run.lines
  assert.equal(mounted, 'bpf_fs')
  assert.match(removed ?? '', /and the bpffs that was mounted for them$/)
  assert.notEqual(after, 'bpf_fs')
})
