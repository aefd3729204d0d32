import assert from 'node:assert/strict'
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { acquireBitcoind, bitcoindVersion } from './bitcoind.ts'
import { debianMirrors } from './debian-unstable.ts'
import { buildWithGo } from './go-module.ts'
import { acquireNatsServer, isOlder, NATS_SERVER_MIN, natsServerVersion } from './nats-server.ts'
import { acquireCaddy, acquireHaproxy, acquireNginx } from './proxies.ts'
import { ensureSystemPackages } from './system-packages.ts'
import { AcquireError, acquisition, findOnPath, privateCopy, run } from './tool.ts'

const folder = await mkdtemp(join(tmpdir(), 'tollward-acquire-'))
after(() => rm(folder, { recursive: true }))

const skip = (await findOnPath('apt-get')) === undefined && 'missing: apt-get'

test('a nats-server that is new enough is had, and runs', { skip }, async () => {
  const { command, args, version } = await acquireNatsServer()
  assert.ok(!isOlder(version, NATS_SERVER_MIN))
  assert.equal(natsServerVersion(await run(command, [...args, '--version'])), version)
})

test('a bitcoin node is had, and runs with its own libraries', { skip }, async () => {
  const { command, args, version } = await acquireBitcoind()
  assert.equal(bitcoindVersion(await run(command, [...args, '-version'])), version)
})

test('nginx, Caddy and HAProxy are had, and run with what they need', { skip }, async () => {
  for (const acquire of [acquireNginx, acquireCaddy, acquireHaproxy]) {
    const { command, args, version } = await acquire()
    const said = await run('sh', [
      '-c',
      `exec "$@" 2>&1`,
      'sh',
      command,
      ...args,
      acquire === acquireCaddy ? 'version' : '-v',
    ])
    assert.ok(said.includes(version), said)
  }
})

test('an old nats-server is refused with both versions', async () => {
  const configured = join(folder, 'nats-server')
  await writeFile(configured, '#!/bin/sh\necho nats-server: v2.9.10\n', { mode: 0o755 })
  await assert.rejects(acquireNatsServer({ configured }), {
    name: 'AcquireError',
    message: `${configured} is nats-server 2.9.10; Tollward needs 2.11.0 or newer`,
  })
})

test('versions are ordered by number', () => {
  assert.equal(isOlder('2.9.10', '2.11.0'), true)
  assert.equal(isOlder('2.11.0', '2.11.0'), false)
  assert.equal(isOlder('2.15.1', '2.11.0'), false)
  assert.equal(isOlder('10.0.0', '2.11.0'), false)
})

test('versions are read from what the programs print', () => {
  assert.equal(natsServerVersion('nats-server: v2.15.1\n'), '2.15.1')
  assert.equal(natsServerVersion('something else'), undefined)
  assert.equal(bitcoindVersion('Bitcoin Core daemon version v29.0.0\nCopyright'), '29.0.0')
  assert.equal(bitcoindVersion('Bitcoin Knots daemon version v29.4.3.knots20260508\n'), '29.4.3.knots20260508')
})

test('only mirrors of Debian itself are asked for unstable', () => {
  const sources = `# URIs: http://comment.example/debian
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security`
  assert.deepEqual(debianMirrors(sources), ['http://mirror.example/debian'])
  const lines = `deb-src http://source.example/debian bookworm main
deb [arch=amd64] https://one.example/debian/ bookworm main
deb https://vendor.example/apt stable main`
  assert.deepEqual(debianMirrors(lines), ['https://one.example/debian/'])
})

test('callers at the same time get one private copy, whole, and a failed build leaves nothing', async () => {
  const wanted = acquisition({ root: join(folder, 'private') })
  let built = 0
  const build = async (draft: string) => {
    built += 1
    await writeFile(join(draft, 'program'), '')
    return { command: '{folder}/program', args: ['{folder}'], version: '1', from: 'test' }
  }
  const failing = () => Promise.reject(new AcquireError('no'))
  await assert.rejects(privateCopy(wanted, 'tool', failing), /no/)
  assert.deepEqual(await readdir(wanted.folder), [])
  const tools = await Promise.all(Array.from({ length: 5 }, () => privateCopy(wanted, 'tool', build)))
  assert.equal(built, 1)
  const place = join(wanted.folder, 'tool')
  for (const tool of tools) assert.deepEqual([tool.command, tool.args], [join(place, 'program'), [place]])
  assert.deepEqual((await readdir(wanted.folder)).sort(), ['tool'])
})

test('of what Go fetches to build a program nothing stays but the program', async () => {
  const place = join(folder, 'with-go')
  await mkdir(place)
  const go = join(folder, 'go')
  // Takes what Go does: a cache of modules and one of builds, and where a program is to go.
  const script = `#!/bin/sh
set -e
[ "$GOFLAGS" = -modcacherw ] && [ "$1" = install ]
mkdir -p "$GOPATH/pkg/mod/a" "$GOCACHE/b"
echo "$CGO_ENABLED $2" > "$GOBIN/program"
`
  await writeFile(go, script, { mode: 0o755 })
  const progress: string[] = []
  const args = ['install', 'module.example/program']
  const env = { GOBIN: place }
  await buildWithGo((line) => progress.push(line), { go, args, name: 'program', folder: place, cwd: place, env })
  assert.deepEqual(await readdir(place), ['program'])
  assert.equal(await readFile(join(place, 'program'), 'utf8'), '0 module.example/program\n')
  assert.deepEqual(progress, ['building program with Go'])
})

test('a system package that is installed is not missing', { skip }, async () => {
  assert.deepEqual(await ensureSystemPackages(['dpkg', 'libc6']), { missing: [], advice: '' })
})
