import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, realpathSync, unlinkSync } from 'node:fs'
import { copyFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { eventually, goCallsProgram, requires, startProcess, temporaryDirectory } from '@tollward/testkit'
import {
  compileCalls,
  type KeptChunk,
  makeCertificate,
  needsProbes,
  PROGRAMS,
  startCalls,
  THIS_NODE,
} from '../test-calls.ts'
import { systemLibraries } from './call-targets.ts'

const skip = needsProbes || (await requires({ tools: ['curl', 'ldd', 'chroot', 'python3', 'go', 'unshare'] }))
const run = promisify(execFile)

const PATIENCE_MS = 30_000
/** `npm run soak -- calls` does so a thousand times. */
const ROUNDS = process.env.TOLLWARD_SOAK_TIMES === undefined ? 5 : 1000

if (!skip) await compileCalls()

async function startServer(directory: string) {
  const { key, cert } = await makeCertificate(directory)
  const server = await startProcess(process.execPath, ['-e', PROGRAMS.nodeServer, key, cert])
  const port = Number((await server.line(/^port /)).split(' ')[1])
  return { port, server, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() }
}

/** A program with the libraries that it needs under another root, as a container has them: other files of the same content. */
async function makeRoot(root: string, program: string): Promise<string> {
  const path = (await run('which', [program])).stdout.trim()
  const { stdout } = await run('ldd', [path])
  const libraries = [...stdout.matchAll(/(\/\S+) \(0x/g)].map(([, library = '']) => library)
  for (const file of [path, ...libraries]) {
    mkdirSync(join(root, dirname(file)), { recursive: true })
    copyFileSync(realpathSync(file), join(root, file))
    chmodSync(join(root, file), 0o755)
  }
  return path
}

test('a library is probed as soon as a process of another root maps it, and let go when nobody does any more', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  await using server = await startServer(directory.path)
  const root = join(directory.path, 'root')
  const curl = await makeRoot(root, 'curl')
  await using calls = await startCalls({}, { scanIntervalMs: 100 })
  calls.keep(({ addresses }) => addresses?.peerPort === server.port)
  const url = `https://127.0.0.1:${server.port}/slow`
  const inRoot = ({ path }: { path: string }) => path.includes('libssl') && path.includes(directory.path)
  // It waits for the second connection while its library is probed: nothing is seen of processes that are gone at once.
  await using waiting = await startProcess('chroot', [
    root,
    curl,
    '-sk',
    '--retry',
    '100',
    '--retry-all-errors',
    '--retry-delay',
    '1',
    'https://127.0.0.1:9/',
  ])
  await eventually(() => calls.targets.targets.some(inRoot), {
    what: 'the library of the other root is probed',
    timeoutMs: PATIENCE_MS,
  })
  await run('chroot', [root, curl, '-sk', url])
  await calls.until('its call is captured', (chunks) => chunks.some(({ text }) => text.startsWith('GET /slow')))
  await waiting.kill()
  await eventually(() => !calls.targets.targets.some(inRoot), { what: 'the library is let go', timeoutMs: PATIENCE_MS })
  assert.equal(calls.targets.refused, 0)
})

test('a library whose file was deleted under its user is probed all the same', { skip }, async () => {
  await using directory = await temporaryDirectory()
  const root = join(directory.path, 'root')
  const curl = await makeRoot(root, 'curl')
  await using user = await startProcess('chroot', [
    root,
    curl,
    '-sk',
    '--limit-rate',
    '1',
    '--retry',
    '100',
    '--retry-all-errors',
    '--retry-delay',
    '1',
    'https://127.0.0.1:9/',
  ])
  await eventually(async () => (await run('grep', ['-c', 'libssl', `/proc/${user.pid}/maps`])).stdout !== '0', {
    what: 'mapped',
    timeoutMs: PATIENCE_MS,
  })
  const library = (await run('find', [root, '-name', 'libssl*'])).stdout.trim()
  unlinkSync(library)
  await using calls = await startCalls()
  await eventually(() => calls.targets.targets.some(({ path }) => path.includes(library)), {
    what: 'probed',
    timeoutMs: PATIENCE_MS,
  })
})

test('the first call of a process that lives for an instant is captured by a library of the system', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  await using server = await startServer(directory.path)
  await using calls = await startCalls({}, { libraries: systemLibraries() })
  await calls.probed(/libssl/)
  calls.keep(({ addresses }) => addresses?.peerPort === server.port)
  await run('curl', ['-sk', `https://127.0.0.1:${server.port}/once`])
  const [first] = await calls.until('its call is captured', (chunks) => chunks.some(({ closed }) => closed))
  assert.match(first?.text ?? '', /^GET \/once /)
})

test('a library that several processes share is probed once, and each call captured once', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  await using server = await startServer(directory.path)
  await using calls = await startCalls({}, { libraries: systemLibraries(), scanIntervalMs: 100 })
  await calls.probed(/libssl/)
  calls.keep(({ addresses }) => addresses?.peerPort === server.port)
  const urls = Array.from({ length: 5 }, (_, n) => `https://127.0.0.1:${server.port}/${n}`)
  await Promise.all(urls.map((url) => run('curl', ['-sk', url])))
  const chunks = await calls.until('all are captured', (seen) => seen.filter(({ closed }) => closed).length === 5)
  assert.equal(chunks.filter(({ text }) => text.startsWith('GET')).length, 5)
  const libraries = calls.targets.targets.filter(({ path }) => /\/libssl\.so\.3$/.test(path))
  assert.equal(new Set(libraries.map(({ path }) => path)).size, libraries.length)
})

test('probes put on and taken off again and again under load change nothing for their targets', { skip }, async () => {
  await using directory = await temporaryDirectory()
  await using server = await startServer(directory.path)
  // Each answer is compared with its question; the first that is another ends it.
  await using client = await startProcess(process.execPath, [
    '-e',
    PROGRAMS.nodeClient,
    `${server.port}`,
    '10',
    '1000000',
    '20',
  ])
  for (let round = 0; round < ROUNDS; round++) {
    await using calls = await startCalls()
    await calls.probed(THIS_NODE)
    calls.keep(({ owner }) => owner.pid === server.server.pid)
    await calls.until('calls are captured', (chunks) => chunks.length > 200)
  }
  assert.deepEqual(client.lines, [])
  assert.deepEqual(
    [await client.kill(), await server.server.kill()],
    ['SIGKILL', 'SIGKILL'],
    'both were alive until now',
  )
})

test('a process whose seccomp filter kills it for what it does not know lives on under probes', { skip }, async () => {
  await using directory = await temporaryDirectory()
  await using server = await startServer(directory.path)
  await using calls = await startCalls({}, { libraries: systemLibraries() })
  await calls.probed(/libssl/)
  await using program = await startProcess('python3', ['-c', PROGRAMS.pythonConfined, `${server.port}`])
  calls.keep(({ owner }) => owner.pid === program.pid)
  assert.equal(await program.exited, 0)
  await calls.until('its calls are captured', (chunks) => chunks.some(({ text }) => text.startsWith('GET /confined')))
})

test('on a kernel where probes could kill processes, none is attached', { skip }, async () => {
  await using directory = await temporaryDirectory()
  await using server = await startServer(directory.path)
  const features = { socketTracepoints: true, uprobeMulti: true, safeReturnProbes: false }
  await using calls = await startCalls({}, { libraries: systemLibraries(), features })
  await calls.targets.scan()
  assert.deepEqual(calls.targets.targets, [])
  assert.match(calls.kernel.missing.join(), /inside TLS/)
  assert(server.port > 0)
})

/** Two containers of one image: roots of their own, each an overlay over the same files, in mount namespaces of their own. */
const CONTAINER = `mount -t tmpfs none "$1"; mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay none -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"; root=$1/root; shift 2; exec chroot "$root" "$@"`

async function startContainer(directory: string, image: string, ...command: string[]) {
  const place = mkdtempSync(join(directory, 'container-'))
  return await startProcess('unshare', ['--mount', 'sh', '-ec', CONTAINER, 'sh', place, image, ...command])
}

test('in containers of one image a library and a Go program are each probed once, and each call captured once', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  const image = join(directory.path, 'image')
  const curl = await makeRoot(image, 'curl')
  await copyFile(await goCallsProgram('stripped'), join(image, 'program'))
  const { key, cert } = await makeCertificate(directory.path)
  for (const [name, file] of Object.entries({ key, cert })) await copyFile(file, join(image, name))
  await using calls = await startCalls({}, { scanIntervalMs: 100 })
  await using one = await startContainer(directory.path, image, '/program', 'serve', '/key', '/cert')
  await using two = await startContainer(directory.path, image, '/program', 'serve', '/key', '/cert')
  const servers = await Promise.all(
    [one, two].map(async (server) => ({ pid: server.pid, port: Number((await server.line(/^port /)).split(' ')[1]) })),
  )
  const asked = servers.flatMap(({ port }) => [1, 2].map((call) => `https://127.0.0.1:${port}/${call}`))
  const patient = ['-sk', '--retry', '1000', '--retry-all-errors', '--retry-delay', '1', 'https://127.0.0.1:9/']
  await using waiting = await startContainer(directory.path, image, curl, ...patient)
  await calls.probed(/program$/)
  await calls.probed(/libssl/)
  await using client = await startContainer(directory.path, image, curl, '-sk', '--http1.1', ...asked)
  calls.keep(({ owner }) => [...servers, client].some(({ pid }) => pid === owner.pid))
  assert.equal(await client.exited, 0)
  assert(waiting.pid > 0)
  /** Go reads the first byte of a question apart. */
  const questions = (chunks: readonly KeptChunk[], of: KeptChunk['source']) => {
    const texts = chunks.filter(({ source }) => source === of).map(({ text }) => text)
    return [...texts.join('').matchAll(/GET \/[12] /g)].length
  }
  const chunks = await calls.until(
    'all are captured',
    (seen) => seen.filter(({ closed, source }) => closed && source === 'go').length >= 2,
  )
  for (const source of ['go', 'openssl'] as const) assert.equal(questions(chunks, source), 4, source)
  assert(chunks.every(({ binding, closed }) => closed || binding === 'certain'))
  const ours = calls.targets.targets.filter(({ path }) => path.includes('/program') || path.includes(directory.path))
  assert.equal(ours.filter(({ source }) => source === 'go').length, 1)
})
