import assert from 'node:assert/strict'
import { readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import {
  eventually,
  type NetworkNamespace,
  networkNamespace,
  type RunningProcess,
  requires,
  startProcess,
  temporaryDirectory,
} from '@tollward/testkit'
import { pinDirectory } from './test-node.ts'

const MAIN = join(import.meta.dirname, 'archsec.ts')
const PORTS = [23, 80, 8080, 8999]
const SOURCES = ['198.18.255.1', '198.18.255.2', '198.18.255.3']
const SOURCES6 = ['fd70:22::1', 'fd70:22::2']
const BURST = 20

const skip = await requires({
  root: true,
  tools: ['ip', 'nft', 'clang', 'make', 'nsenter'],
  files: ['/usr/include/bpf/bpf_helpers.h', '/sys/kernel/btf/vmlinux'],
})

/** Says of each datagram that comes to one of the ports: port, source and content. */
const LISTENER = `const ports = process.argv[1].split(',').map(Number)
let bound = 0
for (const port of ports) {
  const socket = require('dgram').createSocket({ type: 'udp6' })
  socket.on('message', (data, from) => console.log('got ' + port + ' ' + from.address.replace('::ffff:', '') + ' ' + data))
  socket.bind(port, '::', () => { if (++bound === ports.length) console.log('bound') })
}`

/** Sends so many datagrams from an address to a port, then says so. */
const SENDER = `const [, from, to, ports, count, mark] = process.argv
const socket = require('dgram').createSocket(from.includes(':') ? 'udp6' : 'udp4')
socket.bind(0, from, () => {
  let left = 0
  for (const port of ports.split(',')) for (let n = 0; n < Number(count); n++) {
    left++
    socket.send(mark, Number(port), to, () => { if (--left === 0) process.exit() })
  }
})`

const document = (kind: string, name: string, spec: object) =>
  `---\n${JSON.stringify({ apiVersion: 'tollward.dev/v1', kind, metadata: { name }, spec })}\n`
const rule = (name: string, spec: object) => document('KernelRule', name, { direction: 'ingress', ...spec })
const list = (name: string, sources: readonly string[], until?: string) =>
  document('BlockList', name, until === undefined ? { sources } : { sources, until })

const [ONE = '', TWO = '', THREE = ''] = SOURCES
const [SIX = '', OTHER_SIX = ''] = SOURCES6
/** The widest range that the tests' addresses are in, without the host's own. */
const ALL4 = '198.18.255.0/24'

/** Rules and what they are about; every datagram of every source to every port is judged by both. */
const CASES: readonly (readonly [what: string, text: string])[] = [
  ['no rules', '# none\n'],
  ['an address and a range of each family', list('a', [ONE, '198.18.255.2/31', `${SIX}/128`])],
  [
    'ranges within ranges, of which the inner lasts longer',
    list('a', [ALL4], '2040-01-01T00:00:00Z') + list('b', ['198.18.255.2/31']),
  ],
  [
    'a range within one that is over',
    list('a', [ALL4], '2020-01-01T00:00:00Z') + list('b', [`${THREE}/32`, '198.18.255.2/31']),
  ],
  [
    'ports, ranges of them and lists of sources',
    rule('a', { protocol: 'udp', sources: [ONE, SIX], ports: [23, '8080-8999'], action: 'drop' }),
  ],
  ['another protocol', rule('a', { protocol: 'tcp', ports: [80], action: 'drop' })],
  ['sources of one family', rule('a', { sources: ['::/0'], action: 'drop' })],
  ['all of IPv4', rule('a', { sources: ['0.0.0.0/0'], action: 'drop' })],
  ['destinations', rule('a', { destinations: ['203.0.113.0/24'], action: 'drop' })],
  [
    'allow before drop, by priority, for who is blocked as well',
    rule('z', { protocol: 'udp', ports: [80], action: 'allow', priority: 1 }) +
      rule('a', { protocol: 'udp', sources: [TWO], action: 'drop', priority: 2 }) +
      list('l', [ONE, OTHER_SIX]),
  ],
  ['equals by name', rule('a', { protocol: 'udp', ports: [80], action: 'allow' }) + rule('b', { action: 'drop' })],
  [
    'a rate that nobody reaches, and a later rule',
    rule('a', {
      protocol: 'udp',
      action: 'rate-limit',
      rate: { packetsPerSecond: 100_000 },
      priority: 1,
    }) + rule('b', { protocol: 'udp', sources: [TWO], action: 'drop', priority: 2 }),
  ],
  ['audit and alert', rule('a', { action: 'drop', mode: 'audit' }) + rule('b', { action: 'alert' })],
  ['a management port', rule('a', { protocol: 'udp', ports: ['8000-9000'], action: 'drop' })],
  ['a rule that is over', rule('a', { action: 'drop', ttl: '1ms' })],
  ['leaving for a source', rule('a', { direction: 'egress', destinations: [ONE], action: 'drop' })],
]

describe('nftables in the place of the kernel programs', { skip }, () => {
  const resources = new AsyncDisposableStack()
  let host: NetworkNamespace
  let directory: string
  let pins: string
  let listener: RunningProcess
  let mark = 0

  const environment = (enforcer: string) => ({
    PATH: process.env.PATH ?? '',
    TOLLWARD_ENFORCER: enforcer,
    TOLLWARD_HEALTH_PORT: '0',
    TOLLWARD_INTERFACES: host.device,
    TOLLWARD_MANAGEMENT_PORTS: '22,8080',
    TOLLWARD_NODE: 'host.one',
    TOLLWARD_PIN_DIRECTORY: pins,
    TOLLWARD_RULES_FILE: join(directory, 'rules.yaml'),
    TOLLWARD_KEPT_RULES_FILE: join(directory, 'kept.yaml'),
    TOLLWARD_STATE_FILE: join(directory, 'state.json'),
  })
  /** Only the network is the namespace's: pins are in the bpffs of everybody. */
  const inside = (args: readonly string[], env: NodeJS.ProcessEnv) =>
    startProcess('nsenter', [`--net=/run/netns/${host.name}`, process.execPath, MAIN, ...args], { env })
  const write = async (text: string) => {
    await writeFile(join(directory, 'next.yaml'), text)
    await rename(join(directory, 'next.yaml'), join(directory, 'rules.yaml'))
  }
  const started = async (enforcer: string) => {
    const sensor = await inside([], environment(enforcer))
    await sensor.line(/"msg":"ready"/, 20_000)
    return sensor
  }
  const put = async (sensor: RunningProcess, text: string) => {
    await write(text)
    process.kill(sensor.pid, 'SIGHUP')
    const refused = () => sensor.lines.find((line) => line.includes('rules file is refused'))
    // Kept once it is in force.
    const isInForce = async () => (await readFile(join(directory, 'kept.yaml'), 'utf8')) === text
    await eventually(async () => refused() !== undefined || (await isInForce()), { what: 'the file is read' })
    assert.equal(refused(), undefined)
  }
  const send = async (from: string, count = 1) => {
    const to = from.includes(':') ? host.address6 : host.address
    const ports = count > 1 ? '80' : PORTS.join()
    await using sender = await startProcess(process.execPath, [
      '-e',
      SENDER,
      from,
      to,
      ports,
      String(count),
      String(mark),
    ])
    assert.equal(await sender.exited, 0, sender.lines.join())
  }
  /** What was sent before has come by then. */
  const allCame = async () => {
    // From an address that is blocked in no case, and to a port that no rule closes.
    await send(host.hostAddress)
    const last = `got 8080 ${host.hostAddress} ${mark}`
    await eventually(() => listener.lines.includes(last), { what: 'the last datagram' })
  }
  /** Which source reaches which port. */
  const verdicts = async () => {
    mark += 1
    await Promise.all([...SOURCES, ...SOURCES6].map((from) => send(from)))
    await allCame()
    return listener.lines.filter((line) => line.startsWith('got') && line.endsWith(` ${mark}`)).sort()
  }

  before(async () => {
    directory = resources.use(await temporaryDirectory()).path
    pins = resources.use(pinDirectory()).path
    host = resources.use(await networkNamespace())
    for (const source of SOURCES) await ip('address', 'add', `${source}/32`, 'dev', host.hostDevice)
    for (const source of SOURCES6) await ip('address', 'add', `${source}/128`, 'dev', host.hostDevice, 'nodad')
    await host.exec('ip', ['route', 'add', ALL4, 'via', host.hostAddress])
    await host.exec('ip', ['-6', 'route', 'add', 'fd70:22::/64', 'via', host.hostAddress6])
    listener = resources.use(await host.start(process.execPath, ['-e', LISTENER, PORTS.join()]))
    await listener.line(/^bound$/)
    await write('# none\n')
  })
  after(() => resources.disposeAsync())

  test('the same datagrams pass and are dropped by the same rules, whichever of both enforces', async () => {
    const of = async (enforcer: string) => {
      await using sensor = await started(enforcer)
      const found = new Map<string, string[]>()
      for (const [what, text] of CASES) {
        await put(sensor, text)
        found.set(
          what,
          (await verdicts()).map((line) => line.split(' ').slice(0, 3).join(' ')),
        )
      }
      return found
    }
    const byKernel = await of('kernel')
    const byNftables = await of('nftables')
    assert.equal(byKernel.get('no rules')?.length, PORTS.length * (SOURCES.length + SOURCES6.length + 1))
    for (const [what] of CASES) assert.deepEqual(byNftables.get(what), byKernel.get(what), what)
    const numbers = new Set([...byKernel.values()].map(({ length }) => length))
    assert.ok(numbers.size >= 5, `the cases differ in what passes: ${[...numbers]}`)
  })

  test('each source has a rate of its own, and each /64', async () => {
    const rate = { packetsPerSecond: 1, burst: BURST }
    const text = rule('slow', { protocol: 'udp', ports: [80], action: 'rate-limit', rate })
    for (const enforcer of ['kernel', 'nftables']) {
      await using sensor = await started(enforcer)
      await put(sensor, text)
      mark += 1
      const got = (from: string) =>
        listener.lines.filter((line) => line.startsWith(`got 80 ${from}`) && line.endsWith(` ${mark}`)).length
      for (const from of [ONE, TWO, SIX, OTHER_SIX]) await send(from, 3 * BURST)
      await allCame()
      // A burst, and what a busy machine lets the bucket gain meanwhile.
      for (const from of [ONE, TWO, 'fd70:22::'])
        assert.ok(got(from) >= BURST && got(from) <= BURST + 5, `${got(from)} of ${from} (${enforcer})`)
    }
  })

  test('ends come with no sensor running, and what it left is taken over or off', async () => {
    // Longer than a busy machine takes to look whether they hold.
    const seconds = 6
    const until = new Date(Date.now() + seconds * 1000).toISOString()
    const ports = { protocol: 'udp', ports: [80], action: 'drop', ttl: `${seconds}s` }
    await using sensor = await started('nftables')
    await put(sensor, list('a', [ONE, '198.18.255.2/31'], until) + rule('b', { ...ports, sources: [SIX] }))
    const all = async () => (await verdicts()).length === PORTS.length * (SOURCES.length + SOURCES6.length + 1)
    assert.equal(await all(), false)
    await sensor.kill()
    await eventually(all, { what: 'everything has ended' })

    await using again = await started('nftables')
    await put(again, list('a', [ONE]))
    assert.equal(await all(), false)
    await again.stop()
    assert.equal(await all(), false)
    await using kernel = await started('auto')
    assert.match(kernel.lines.join('\n'), /the table of nftables is gone/)
    assert.equal(await all(), false)
    await kernel.stop()
    await using last = await started('nftables')
    await last.stop()
    await using detach = await inside(['detach'], environment('auto'))
    assert.equal(await detach.exited, 0, detach.lines.join('\n'))
    assert.match(detach.lines.join(), /removed the table inet tollward of nftables/)
    assert.equal(await all(), true)
  })

  test('drops raise an alert, status counts them, and says what nftables lacks', async () => {
    await using sensor = await started('nftables')
    await put(
      sensor,
      rule('no-web', { protocol: 'udp', sources: [ONE], ports: [80], action: 'drop' }) + list('a', [TWO]),
    )
    await verdicts()
    const line = await sensor.line(/"event":"alert"/)
    assert.match(line, /KernelRule\/no-web dropped 1 packets/)
    const status = async () => {
      await using run = await inside(['status'], environment('nftables'))
      return { code: await run.exited, said: run.lines.join('\n') }
    }
    const { code, said } = await eventually(
      async () => {
        const answer = await status()
        return /dropped_exact [1-9]/.test(answer.said) ? answer : undefined
      },
      { what: 'drops are counted' },
    )
    assert.equal(code, 0)
    assert.match(said, /in nftables, out nftables/)
    assert.match(said, /rule no-web \(drop\): 1 packets, 1 dropped/)
    assert.match(sensor.lines.join('\n'), /nftables shows no packets/)
  })

  test('a table that somebody empties or takes away is put back, and what it counted is not forgotten', async () => {
    await using sensor = await started('nftables')
    await put(sensor, rule('no-one', { protocol: 'udp', sources: [ONE], action: 'drop' }))
    const ofOne = async () => (await verdicts()).filter((line) => line.includes(` ${ONE} `)).length
    const counted = async () => {
      const { rules = [] } = JSON.parse(await readFile(join(directory, 'state.json'), 'utf8')) as {
        rules?: { packets?: string }[]
      }
      return Number(rules[0]?.packets ?? 0)
    }
    assert.equal(await ofOne(), 1)
    // Far more than are sent below until a new table is seen to drop.
    const many = 100
    let sent = 0
    for (const what of [['ruleset'], ['table', 'inet', 'tollward']]) {
      await send(ONE, many)
      sent += many
      await eventually(async () => (await counted()) >= sent, { what: 'drops are counted' })
      const told = () => sensor.lines.filter((line) => line.includes('somebody changed the table')).length
      const toldBefore = told()
      await host.exec('nft', ['flush', ...what])
      await eventually(() => told() > toldBefore, { what: `it sees that it is gone: flush ${what.join(' ')}` })
      await eventually(async () => (await ofOne()) === 1, { what: 'the table is back' })
      await eventually(async () => (await counted()) > sent, { what: 'it counts on' })
    }
  })

  test('a start without any good rules leaves the table as it was', async () => {
    await using sensor = await started('nftables')
    await put(sensor, list('a', [ONE]))
    await sensor.stop()
    await rm(join(directory, 'kept.yaml'))
    await write('kind: [')
    await using again = await started('nftables')
    const reportedBefore = Date.now()
    const state = async () =>
      JSON.parse(await readFile(join(directory, 'state.json'), 'utf8')) as { reportedAt: string }
    // It has looked at the table by then.
    await eventually(async () => Date.parse((await state()).reportedAt) > reportedBefore, { what: 'a look later' })
    assert.match(again.lines.join('\n'), /what the kernel has stays in force/)
    assert.equal((await verdicts()).filter((line) => line.includes(` ${ONE} `)).length, 1)
  })

  test('where the programs cannot be had, nftables enforces unasked', async () => {
    await write(list('a', [ONE]))
    const env = { ...environment('auto'), TOLLWARD_BPF_OBJECT: '/nowhere.o' }
    await using sensor = await inside([], env)
    await sensor.line(/"msg":"ready"/)
    assert.match(sensor.lines.join('\n'), /the programs need the file \/nowhere\.o/)
    const seen = await verdicts()
    assert.deepEqual(
      seen.filter((line) => line.includes(` ${ONE} `)).map((line) => line.split(' ')[1]),
      ['8080'],
    )
  })
})

async function ip(...args: string[]): Promise<void> {
  await using run = await startProcess('ip', args)
  assert.equal(await run.exited, 0, run.lines.join())
}
