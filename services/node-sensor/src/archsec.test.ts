import assert from 'node:assert/strict'
import { readFile, rename, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, beforeEach, describe, test } from 'node:test'
import {
  eventually,
  freePort,
  type NetworkNamespace,
  networkNamespace,
  requires,
  type Service,
  startProcess,
  startProgram,
  temporaryDirectory,
} from '@tollward/testkit'
import { greeter, isInKernel, metric, pinDirectory, reasons, tryFrom } from './test-node.ts'

const MAIN = join(import.meta.dirname, 'archsec.ts')
const NOTHING = '# nothing is blocked\n'

const skip = await requires({
  root: true,
  tools: ['ip', 'clang', 'make', 'nsenter'],
  files: ['/usr/include/bpf/bpf_helpers.h', '/sys/kernel/btf/vmlinux'],
})

const document = (kind: string, name: string, spec: object) =>
  `---\n${JSON.stringify({ apiVersion: 'tollward.dev/v1', kind, metadata: { name }, spec })}\n`
const blocks = (name: string, sources: readonly string[], more: object = {}) =>
  document('BlockList', name, { sources, ...more })

/** One host with two neighbours; every test begins with a sensor that runs, and without rules and blocks. */
describe('tollward-archsec on a host', { skip }, () => {
  const resources = new AsyncDisposableStack()
  let alice: NetworkNamespace
  let bob: NetworkNamespace
  let port: number
  let directory: string
  let environment: Record<string, string>
  let pins: string
  let sensor: Service

  const rulesFile = () => join(directory, 'rules.yaml')
  /** As editors write: a new file in the place of the old one. */
  const write = async (text: string) => {
    await writeFile(`${rulesFile()}.tmp`, text)
    await rename(`${rulesFile()}.tmp`, rulesFile())
  }
  const sees = (who: NetworkNamespace, what: 'served' | 'silence', when: string) =>
    eventually(async () => (await tryFrom(who, port)) === what, { what: `${what} ${when}` })
  const run = async (...args: string[]) => {
    const process = await startProcess(globalThis.process.execPath, [MAIN, ...args], { env: environment })
    return { code: await process.exited, said: process.lines.join('\n') }
  }
  /** Lines of the journal since the test began. */
  let begun = 0
  const journal = () =>
    sensor.lines
      .slice(begun)
      .flatMap((line) => (line.startsWith('{') ? [JSON.parse(line) as Record<string, unknown>] : []))
  const line = (what: string, isIt: (fields: Record<string, unknown>) => boolean) =>
    eventually(() => journal().find(isIt), { what })

  before(async () => {
    alice = resources.use(await networkNamespace())
    bob = resources.use(await networkNamespace())
    port = resources.use(await greeter()).port
    directory = resources.use(await temporaryDirectory()).path
    pins = resources.use(pinDirectory()).path
    environment = {
      PATH: process.env.PATH ?? '',
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_INTERFACES: `${alice.hostDevice},${bob.hostDevice}`,
      TOLLWARD_NODE: 'host.one',
      TOLLWARD_PIN_DIRECTORY: pins,
      TOLLWARD_RULES_FILE: rulesFile(),
      TOLLWARD_KEPT_RULES_FILE: join(directory, 'kept.yaml'),
      TOLLWARD_STATE_FILE: join(directory, 'state.json'),
    }
    await write(NOTHING)
    sensor = resources.use(await startProgram('tollward-archsec', MAIN, environment))
  })
  beforeEach(async () => {
    await write(NOTHING)
    await sees(alice, 'served', 'before the test')
    await sees(bob, 'served', 'before the test')
    begun = sensor.lines.length
  })
  after(() => resources.disposeAsync())

  test('a source that the file blocks is dropped once the file says so, and no longer than that', async () => {
    await write(blocks('scanners', [alice.address, `${bob.address6}/128`]))
    await sees(alice, 'silence', 'by the list')
    assert.equal(await tryFrom(bob, port), 'served')
    assert.equal(await tryFrom(bob, port, bob.hostAddress6), 'silence')
    await write(NOTHING)
    await sees(alice, 'served', 'once nothing blocks it')
  })

  test('SIGHUP takes a file at once that looks as if nobody had changed it', async () => {
    await write(blocks('scanners', [alice.address]))
    await sees(alice, 'silence', 'by the list')
    const taken = () => metric(sensor.healthUrl, 'tollward_archsec_rules_files_total{result="taken"}')
    const before = await taken()
    process.kill(sensor.pid, 'SIGHUP')
    await eventually(async () => (await taken()) === before + 1, { what: 'the file is read again' })
    assert.equal(await tryFrom(alice, port), 'silence')
  })

  test('a wrong file never takes the place of good rules, says where it is wrong, and is no longer told once it is right', async () => {
    await write(blocks('scanners', [alice.address]))
    await sees(alice, 'silence', 'by the list')
    await write(`${blocks('scanners', [bob.address])}---\nkind: KernelRule\n`)
    const why = `${rulesFile()}:4: apiVersion: is required`
    const [reason = ''] = await eventually(
      async () => {
        const found = await reasons(sensor.healthUrl)
        return found.length > 0 ? found : undefined
      },
      { what: 'it is not ready' },
    )
    assert.ok(reason.startsWith(`file: ${why}`), reason)
    await line('the fault is told', ({ why: told }) => String(told).startsWith(why))
    assert.equal(await tryFrom(alice, port), 'silence')
    assert.equal(await tryFrom(bob, port), 'served')
    await eventually(async () => (await run('status')).code === 1, { what: 'status says that it is faulty' })
    await write(NOTHING)
    await sees(alice, 'served', 'by the right file')
    assert.deepEqual(await reasons(sensor.healthUrl), [])
  })

  test('a block and a rule end when the file says, also with no sensor running', async () => {
    // Longer than a busy machine takes to look whether they hold.
    const seconds = 6
    const until = new Date(Date.now() + seconds * 1000).toISOString()
    const rule = { direction: 'ingress', protocol: 'tcp', sources: [bob.address], action: 'drop', ttl: `${seconds}s` }
    await write(blocks('for-now', [alice.address], { until }) + document('KernelRule', 'no-bob', rule))
    await sees(alice, 'silence', 'by the list')
    await sees(bob, 'silence', 'by the rule')
    assert.equal(await sensor.kill(), 'SIGKILL')
    await sees(alice, 'served', 'when it has ended')
    await sees(bob, 'served', 'when it has ended')
    await sensor.start()
    assert.equal(await tryFrom(alice, port), 'served')
    assert.equal(await tryFrom(bob, port), 'served')
  })

  test('what is dropped is a line each of the journal with the list or rule, and an alert one line', async () => {
    const rule = { direction: 'ingress', protocol: 'tcp', sources: [bob.address], ports: [port], action: 'drop' }
    await write(blocks('scanners', [alice.address]) + document('KernelRule', 'no-bob', rule))
    await sees(alice, 'silence', 'by the list')
    await sees(bob, 'silence', 'by the rule')
    const ofAlice = await line(
      'a drop of the list',
      ({ event, source }) => event === 'drop' && source === alice.address,
    )
    assert.deepEqual(
      [ofAlice.by, ofAlice.verdict, ofAlice.destinationPort, ofAlice.direction],
      ['BlockList/scanners', 'dropped_exact', port, 'ingress'],
    )
    const ofBob = await line('a drop of the rule', ({ event, source }) => event === 'drop' && source === bob.address)
    assert.deepEqual([ofBob.by, ofBob.verdict], ['KernelRule/no-bob', 'dropped_rule'])
    const { alert } = (await line('the alert', ({ event }) => event === 'alert')) as { alert: Record<string, unknown> }
    assert.deepEqual(
      [alert.title, alert.source, alert.disposition, alert.severity, alert.node],
      ['KernelRule/no-bob dropped packets', bob.address, 'blocked', 'low', 'host.one'],
    )
  })

  test('status shows what is in force and what it met, and says of a dead sensor that its work goes on', async () => {
    const rule = { direction: 'ingress', protocol: 'tcp', sources: [bob.address], ports: [port], action: 'drop' }
    await write(blocks('scanners', [alice.address, '203.0.113.0/24']) + document('KernelRule', 'no-bob', rule))
    await sees(bob, 'silence', 'by the rule')
    const running = await eventually(
      async () => {
        const answer = await run('status')
        return /rule no-bob \(drop\): [1-9]\d* packets, [1-9]/.test(answer.said) ? answer : undefined
      },
      { what: 'status counts drops' },
    )
    assert.equal(running.code, 0)
    assert.match(running.said, /^tollward-archsec \S+ on host\.one .*mode enforce: runs since /)
    assert.match(running.said, new RegExp(`interface ${alice.hostDevice}: in native, out tcx`))
    assert.match(running.said, /1 rules, 2 blocks, taken 20/)
    assert.match(running.said, /blocks in the kernel: exact 1, cidr4 1, cidr6 0/)
    assert.equal(await sensor.stop(), 0)
    assert.equal(await tryFrom(alice, port), 'silence')
    const dead = await eventually(
      async () => {
        const answer = await run('status')
        return answer.code === 3 ? answer : undefined
      },
      { what: 'status says that it is silent', timeoutMs: 20_000 },
    )
    assert.match(dead.said, /is silent since .*; what it put into the kernel stays in force/)
    await sensor.start()
  })

  test('a start with a wrong file has the last good rules, also when the kernel has forgotten them', async () => {
    await write(blocks('scanners', [alice.address]))
    await sees(alice, 'silence', 'by the list')
    await sensor.stop()
    const { code, said } = await run('detach')
    assert.equal(code, 0, said)
    assert.equal(await tryFrom(alice, port), 'served')
    await write('kind: [')
    const again = await startProcess(process.execPath, [MAIN], { env: environment })
    try {
      await sees(alice, 'silence', 'by the rules that were kept')
      assert.match((await reasons(sensor.healthUrl)).join(), /^file: .*rules\.yaml:1: /)
    } finally {
      await again.stop()
    }
    await write(NOTHING)
    await sensor.start()
    assert.equal(isInKernel(pins, alice.address), false)
  })

  test('check says with file, line and path what is wrong, also what would do nothing, and touches nothing', async () => {
    const file = join(directory, 'candidate.yaml')
    const checked = async (text: string) => {
      await writeFile(file, text)
      return await run('check', file)
    }
    const good = await checked(blocks('a', ['203.0.113.7']))
    assert.deepEqual(good, { code: 0, said: `${file}: 0 rules and 1 blocks in force` })
    assert.equal(isInKernel(pins, '203.0.113.7'), false)
    const own = await checked(blocks('a', ['203.0.113.7', alice.hostAddress]))
    assert.equal(own.code, 1)
    assert.match(own.said, new RegExp(`^${file}:2: spec\\.sources\\[1\\]: ${alice.hostAddress} is guarded: `))
    const ssh = document('KernelRule', 'a', { direction: 'ingress', protocol: 'tcp', ports: [22], action: 'drop' })
    assert.match((await checked(ssh)).said, /spec\.ports\[0\]: 22 is a management port \(22\)/)
    assert.deepEqual(await run('check', join(directory, 'none.yaml')).then(({ code }) => code), 2)
    assert.equal((await run('nonsense')).code, 2)
  })

  test('the state file and the kept rules belong to the sensor alone to write', async () => {
    assert.equal((await stat(environment.TOLLWARD_KEPT_RULES_FILE ?? '')).mode & 0o077, 0)
    assert.equal((await stat(environment.TOLLWARD_STATE_FILE ?? '')).mode & 0o022, 0)
    assert.equal(await readFile(environment.TOLLWARD_KEPT_RULES_FILE ?? '', 'utf8'), NOTHING)
  })
})
