// tollward-archsec as a user of Debian or Arch installs it: packages that hold what it needs, and a unit that gives it no more.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chmod, chown, cp, mkdir, readdir, readFile, readlink, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join, relative, resolve } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { promisify } from 'node:util'
import {
  eventually,
  type NetworkNamespace,
  networkNamespace,
  requires,
  startProcess,
  temporaryDirectory,
} from '@tollward/testkit'

const HOST = resolve(import.meta.dirname, '../../deploy/host')
const BASE = 'usr/lib/tollward-archsec'
const UNIT = 'usr/lib/systemd/system/tollward-archsec.service'
const PROFILE = 'etc/apparmor.d/tollward-archsec'
const NOBODY = 65_534
const AS_NOBODY = ['--reuid', String(NOBODY), '--regid', String(NOBODY), '--clear-groups']
/** Of systemd's score, 0 to 100: what is left is the network, the kernel programs, and an engine that compiles. */
const EXPOSURE_MAX = 25
const BUILD_TIMEOUT_MS = 120_000
/** A blocked packet is not answered at all; many times what a handshake takes here. */
const CONNECT_TIMEOUT_MS = 400
const GREETER = `require('net').createServer((socket) => socket.on('error', () => undefined).end('served'))
  .listen(0, '::', function () { console.log('port ' + this.address().port) })`

const run = promisify(execFile)
const skip = await requires({
  root: true,
  tools: [
    'ip',
    'nft',
    'clang',
    'make',
    'nsenter',
    'unshare',
    'setpriv',
    'dpkg-deb',
    'makepkg',
    'pacman',
    'bsdtar',
    'fakeroot',
  ].concat(['zstd', 'systemd-analyze', 'apparmor_parser']),
  files: ['/usr/include/bpf/bpf_helpers.h', '/sys/kernel/btf/vmlinux'],
})

describe('packages of tollward-archsec', { skip }, () => {
  const resources = new AsyncDisposableStack()
  let directory: string
  let deb: string
  /** Where each package is unpacked. */
  let roots: Record<'debian' | 'arch', string>

  before(async () => {
    directory = resources.use(await temporaryDirectory()).path
    // The user that runs what is unpacked must get there.
    await chmod(directory, 0o755)
    roots = { debian: join(directory, 'debian'), arch: join(directory, 'arch') }
    for (const root of Object.values(roots)) await mkdir(root)
    deb = await builtDeb(directory)
    await run('dpkg-deb', ['--extract', deb, roots.debian])
    await run('bsdtar', ['-x', '-f', await builtByMakepkg(join(directory, 'makepkg')), '-C', roots.arch])
  })
  after(() => resources.disposeAsync())

  test('both hold the same: the program with what it imports, and nothing of the bus or of tests', async () => {
    const [debian, arch] = [await contents(roots.debian), await contents(roots.arch)]
    // What belongs to each kind of package, and the manual page that makepkg compresses.
    const isOwn = (path: string) => /^\.(PKGINFO|BUILDINFO|MTREE|INSTALL)$|man8/.test(path)
    const common = (files: Map<string, string>) => new Map([...files].filter(([path]) => !isOwn(path)).sort())
    assert.deepEqual(common(arch), common(debian))
    const paths = [...debian.keys()]
    assert.deepEqual(
      paths.filter((path) => /nats|\.test\.ts$|test-\w+\.ts$|typescript|libs\/bus/.test(path)),
      [],
    )
    for (const path of [
      `${BASE}/bpf/sensor.bpf.o`,
      `${BASE}/bin/node`,
      UNIT,
      PROFILE,
      'etc/tollward-archsec/rules.yaml',
    ])
      assert.ok(debian.has(path), path)
  })

  test('a Debian package keeps what an administrator changes, and takes its programs out of the kernel when it goes', async () => {
    const control = join(directory, 'control')
    await run('dpkg-deb', ['--control', deb, control])
    const conffiles = (await readFile(join(control, 'conffiles'), 'utf8')).trim().split('\n')
    assert.deepEqual(conffiles.sort(), [
      '/etc/apparmor.d/tollward-archsec',
      '/etc/tollward-archsec/environment',
      '/etc/tollward-archsec/rules.yaml',
    ])
    for (const script of ['postinst', 'prerm', 'postrm']) await run('sh', ['-n', join(control, script)])
    assert.match(await readFile(join(control, 'prerm'), 'utf8'), /tollward-archsec detach/)
    assert.match((await run('dpkg-deb', ['--field', deb, 'Depends'])).stdout, /libbpf1/)
    const info = await readFile(join(roots.arch, '.PKGINFO'), 'utf8')
    const { stdout: version } = await run('dpkg-deb', ['--field', deb, 'Version'])
    assert.match(info, new RegExp(`^pkgver = ${version.trim()}-1$`, 'm'))
    assert.match(info, /^depend = libbpf$/m)
    assert.match(info, /^backup = etc\/tollward-archsec\/rules\.yaml$/m)
    assert.match(await readFile(join(roots.arch, '.INSTALL'), 'utf8'), /tollward-archsec detach/)
  })

  test('systemd finds no fault with the unit, and little that it leaves open', async () => {
    const root = join(directory, 'verified')
    await cp(roots.debian, root, { recursive: true, verbatimSymlinks: true })
    await cp('/usr/lib/systemd/system', join(root, 'usr/lib/systemd/system'), { recursive: true, force: false })
    await mkdir(join(root, 'bin'))
    await writeFile(join(root, 'bin/kill'), '', { mode: 0o755 })
    const verify = () => run('systemd-analyze', ['verify', '--man=no', `--root=${root}`, 'tollward-archsec.service'])
    assert.deepEqual(await verify(), { stdout: '', stderr: '' })
    const security = ['security', '--offline=true', `--root=${root}`, `--threshold=${EXPOSURE_MAX}`]
    await run('systemd-analyze', [...security, 'tollward-archsec.service'])
    // That it would say so.
    const unit = join(root, UNIT)
    await writeFile(unit, (await readFile(unit, 'utf8')).replace('NoNewPrivileges=', 'NoNewPrivilege='))
    assert.match((await verify()).stderr, /Unknown key 'NoNewPrivilege'/)
  })

  test('the parser of AppArmor takes the profile', async () => {
    const parse = (profile: string) => run('apparmor_parser', ['--skip-kernel-load', '--skip-cache', profile])
    await parse(join(roots.debian, PROFILE))
    const wrong = join(directory, 'wrong.profile')
    await writeFile(
      wrong,
      (await readFile(join(roots.debian, PROFILE), 'utf8')).replace('capability bpf,', 'capability bfp,'),
    )
    await assert.rejects(parse(wrong))
  })

  describe('unpacked, as a user with the capabilities of the unit', () => {
    let host: NetworkNamespace
    let port: number
    let capabilities: string[]

    before(async () => {
      host = resources.use(await networkNamespace())
      const greeter = resources.use(await host.start(process.execPath, ['-e', GREETER]))
      port = Number((await greeter.line(/^port/)).split(' ')[1])
      const unit = await readFile(join(roots.debian, UNIT), 'utf8')
      const listed = (key: string) => (new RegExp(`^${key}=(.*)$`, 'm').exec(unit)?.[1] ?? '').split(' ')
      capabilities = listed('CapabilityBoundingSet').map((name) => name.toLowerCase().replace('cap_', ''))
      assert.deepEqual(listed('AmbientCapabilities'), listed('CapabilityBoundingSet'))
    })

    /** Starts the command in the host's network, with a bpffs as `prepare` makes one, and mounts that nobody else sees. */
    const start = async (
      root: string,
      state: string,
      held: readonly string[],
      args: readonly string[] = [],
      more = {},
    ) => {
      await mkdir(join(state, 'bpf'), { recursive: true })
      for (const path of [state, join(state, 'bpf')]) await chown(path, NOBODY, NOBODY)
      const settings = join(state, 'environment')
      await writeFile(settings, `# as the package has it\nTOLLWARD_ENFORCER=kernel\nTOLLWARD_INTERFACES=${host.device}`)
      const only = ['-all', ...held.map((name) => `+${name}`)].join()
      const caps = ['--inh-caps', only, '--ambient-caps', only, '--bounding-set', only, '--no-new-privs']
      const program = ['setpriv', ...AS_NOBODY, ...caps, join(root, 'usr/bin/tollward-archsec'), ...args]
      const mount = 'mount -t bpf -o mode=0700 bpf "$1" && chown 65534:65534 "$1" && shift && exec "$@"'
      const inside = [
        `--net=/run/netns/${host.name}`,
        'unshare',
        '--mount',
        'sh',
        '-c',
        mount,
        'sh',
        join(state, 'bpf'),
      ]
      return await startProcess('nsenter', [...inside, ...program], {
        env: {
          PATH: process.env.PATH ?? '',
          TOLLWARD_ENVIRONMENT_FILE: settings,
          TOLLWARD_PIN_DIRECTORY: join(state, 'bpf/pins'),
          TOLLWARD_RULES_FILE: join(state, 'rules.yaml'),
          TOLLWARD_KEPT_RULES_FILE: join(state, 'kept.yaml'),
          TOLLWARD_STATE_FILE: join(state, 'state.json'),
          ...more,
        },
      })
    }

    for (const kind of ['debian', 'arch'] as const)
      test(`it drops a blocked source, with all its programs on: ${kind}`, async () => {
        const root = roots[kind]
        const state = join(directory, `state-${kind}`)
        await mkdir(state)
        await cp(join(root, 'etc/tollward-archsec/rules.yaml'), join(state, 'rules.yaml'))
        await using sensor = await start(root, state, capabilities)
        await sensor.line(/"msg":"ready"/, 20_000)
        assert.equal(await tryToReach(host.address, port), 'served')
        const spec = { sources: [host.hostAddress] }
        const list = { apiVersion: 'tollward.dev/v1', kind: 'BlockList', metadata: { name: 'a' }, spec }
        await writeFile(join(state, 'rules.yaml'), JSON.stringify(list))
        await eventually(async () => (await tryToReach(host.address, port)) === 'silence', { what: 'it is dropped' })
        const offered = sensor.lines.find((line) => line.includes('what this kernel offers')) ?? assert.fail()
        const { capabilities: found } = JSON.parse(offered) as { capabilities: { name: string; on: boolean }[] }
        const off = found.filter(({ name, on }) => !on && /egress|tracepoint|iterator|native/.test(name))
        assert.deepEqual(off, [])
        await using status = await start(root, state, [], ['status'])
        assert.equal(await status.exited, 0, status.lines.join('\n'))
      })

    test('the same user has nftables drop a blocked source', async () => {
      const state = join(directory, 'state-nftables')
      await mkdir(state)
      const spec = { sources: [host.hostAddress] }
      const list = { apiVersion: 'tollward.dev/v1', kind: 'BlockList', metadata: { name: 'a' }, spec }
      await writeFile(join(state, 'rules.yaml'), JSON.stringify(list))
      await using sensor = await start(roots.debian, state, capabilities, [], { TOLLWARD_ENFORCER: 'nftables' })
      await sensor.line(/"msg":"ready"/, 20_000)
      assert.equal(await tryToReach(host.address, port), 'silence')
      await host.exec('nft', ['delete', 'table', 'inet', 'tollward'])
      await sensor.line(/somebody changed the table/)
      await eventually(async () => (await tryToReach(host.address, port)) === 'silence', { what: 'it is put back' })
    })

    test('without any one of the capabilities it says what it needs', async () => {
      for (const missing of capabilities) {
        const state = join(directory, `state-without-${missing}`)
        await mkdir(state)
        await using sensor = await start(
          roots.debian,
          state,
          capabilities.filter((name) => name !== missing),
        )
        assert.equal(await sensor.exited, 2)
        assert.match(sensor.lines.join(), /it needs root: .* CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON/)
      }
    })
  })
})

async function builtDeb(directory: string): Promise<string> {
  const { stdout } = await run(process.execPath, [join(HOST, 'build.ts'), 'deb', directory], {
    timeout: BUILD_TIMEOUT_MS,
  })
  return stdout.trim()
}

/** makepkg refuses to run as root. */
async function builtByMakepkg(directory: string): Promise<string> {
  await mkdir(directory)
  for (const file of ['PKGBUILD', 'tollward-archsec.install']) await cp(join(HOST, file), join(directory, file))
  await chown(directory, NOBODY, NOBODY)
  // The repository may be where only root looks.
  const reader = ['--inh-caps', '+dac_read_search', '--ambient-caps', '+dac_read_search']
  await run('setpriv', [...AS_NOBODY, ...reader, 'makepkg', '--nodeps'], {
    ...{ cwd: directory, timeout: BUILD_TIMEOUT_MS },
    env: {
      PATH: process.env.PATH ?? '',
      HOME: directory,
      PKGEXT: '.pkg.tar.zst',
      TOLLWARD_SOURCE: resolve(HOST, '../..'),
    },
  })
  const built = (await readdir(directory)).find((name) => name.endsWith('.pkg.tar.zst'))
  return join(directory, built ?? assert.fail('makepkg made no package'))
}

/** Every file and link below a directory, with a hash of what it holds. */
async function contents(root: string): Promise<Map<string, string>> {
  const found = new Map<string, string>()
  for (const entry of await readdir(root, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name)
    if (entry.isSymbolicLink()) found.set(relative(root, path), await readlink(path))
    // Each compiles the kernel programs anew, with the names of its own directories in them.
    else if (entry.isFile() && path.endsWith('.o')) found.set(relative(root, path), 'compiled')
    else if (entry.isFile())
      found.set(
        relative(root, path),
        createHash('sha256')
          .update(await readFile(path))
          .digest('hex'),
      )
  }
  return found
}

async function tryToReach(host: string, port: number): Promise<string> {
  const socket = connect({ host, port })
  return await new Promise((resolve) => {
    socket.setTimeout(CONNECT_TIMEOUT_MS, () => resolve('silence'))
    socket.on('data', (data) => resolve(String(data))).on('error', ({ message }) => resolve(message))
  }).then((seen) => {
    socket.destroy()
    return String(seen)
  })
}
