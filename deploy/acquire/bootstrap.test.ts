import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { after, test } from 'node:test'

/** A repository whose installation is counted, and puts the Node of this test where Node 24 will be. */
async function repository(postinstall: string): Promise<string> {
  const root = await mkdtemp(join(tmpdir(), 'tollward-bootstrap-'))
  after(() => rm(root, { recursive: true }))
  for (const file of ['bootstrap.mjs', 'src/lock.mjs']) {
    await cp(join(import.meta.dirname, file), join(root, 'deploy/acquire', file))
  }
  await mkdir(join(root, 'libs/one'), { recursive: true })
  await writeFile(join(root, 'libs/one/package.json'), '{ "name": "one", "version": "1.0.0" }')
  const manifest = { name: 'fixture', private: true, type: 'module', workspaces: ['libs/*'], scripts: { postinstall } }
  await writeFile(join(root, 'package.json'), JSON.stringify(manifest))
  await writeFile(join(root, 'entry.ts'), ENTRY)
  return root
}

const INSTALL = `echo installed >> installs.log && mkdir -p node_modules/.bin && ln -sf '${process.execPath}' node_modules/.bin/node`
const ENTRY = `
const [what, ...rest]: string[] = process.argv.slice(2)
if (what === 'echo') console.log(process.cwd(), ...rest)
if (what === 'exit') process.exitCode = Number(rest[0])
if (what === 'wait') {
  process.on('SIGINT', () => console.log('interrupted'))
  process.on('SIGTERM', () => process.exit(7))
  // Open as long as the test runs.
  process.stdin.resume().on('end', () => process.exit(1))
  console.log('waiting')
}
if (what === 'die') process.kill(process.pid, 'SIGTERM')
`

function start(root: string, ...args: string[]) {
  const child = spawn(process.execPath, [join(root, 'deploy/acquire/bootstrap.mjs'), ...args], { cwd: root })
  return { child, ended: outcome(child) }
}

async function outcome(child: ChildProcess) {
  const output = Promise.all([child.stdout ? text(child.stdout) : '', child.stderr ? text(child.stderr) : ''])
  const [code, signal] = await once(child, 'exit')
  const [stdout, stderr] = await output
  return { code, signal, stdout, stderr }
}

test('two starts at once install once; a changed package.json installs again', async () => {
  const root = await repository(INSTALL)
  const outcomes = await Promise.all([
    start(root, 'entry.ts', 'echo', 'a b').ended,
    start(root, 'entry.ts', 'echo', 'a b').ended,
  ])
  for (const { code, stdout, stderr } of outcomes) assert.deepEqual([code, stdout], [0, `${root} a b\n`], stderr)
  const installs = () => readFile(join(root, 'installs.log'), 'utf8')
  assert.equal(await installs(), 'installed\n')

  const again = await start(root, 'entry.ts', 'echo').ended
  assert.deepEqual([again.code, again.stderr], [0, ''])
  assert.equal(await installs(), 'installed\n')

  await writeFile(join(root, 'libs/one/package.json'), '{ "name": "one", "version": "1.0.1" }')
  assert.equal((await start(root, 'entry.ts', 'echo').ended).code, 0)
  assert.equal(await installs(), 'installed\ninstalled\n')
})

/** A signal that is not passed on would be waited for for ever. */
const SIGNALS_TIMEOUT_MS = 5_000

test('the program’s exit code, signal and signals sent are passed on', { timeout: SIGNALS_TIMEOUT_MS }, async () => {
  const root = await repository(INSTALL)
  assert.equal((await start(root, 'entry.ts', 'exit', '5').ended).code, 5)
  assert.equal((await start(root, 'entry.ts', 'die').ended).signal, 'SIGTERM')

  const { child, ended } = start(root, 'entry.ts', 'wait')
  after(() => child.stdin.destroy())
  await once(child.stdout, 'data')
  child.kill('SIGINT')
  await once(child.stdout, 'data')
  child.kill('SIGTERM')
  assert.deepEqual(await ended.then(({ code, signal }) => [code, signal]), [7, null])
})

test('a failed installation is told with npm’s reasons, and tried again at the next start', async () => {
  const root = await repository('echo the reason >&2 && exit 3')
  for (const attempt of [1, 2]) {
    const { code, stderr } = await start(root, 'entry.ts', 'echo').ended
    assert.notEqual(code, 0)
    assert.match(stderr, /the reason.*npm install failed/s, `attempt ${attempt}`)
  }
})

test('a signal while installing ends the installation, and nothing is started', async () => {
  const server = createServer()
  after(() => server.close())
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  assert.ok(address !== null && typeof address === 'object')
  // An installation that tells when it is under way, and by its connection when it has ended.
  const root = await repository(`exec node -e "require('net').connect(${address.port}, '127.0.0.1')"`)
  const { child, ended } = start(root, 'entry.ts', 'echo')
  const [connection]: Socket[] = await once(server, 'connection')
  assert.ok(connection)
  // A reset is an end as well.
  const closed = once(connection.on('error', () => {}).resume(), 'close')
  child.kill('SIGTERM')
  const { stdout, signal, code } = await ended
  assert.equal(stdout, '')
  assert.ok(signal === 'SIGTERM' || code !== 0, `ended by ${signal}, ${code}`)
  await closed
})

test('without an entry the usage is shown', async () => {
  const root = await repository(INSTALL)
  const { code, stderr } = await start(root).ended
  assert.equal(code, 1)
  assert.match(stderr, /usage: /)
})
