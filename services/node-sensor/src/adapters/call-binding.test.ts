import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { basename, join } from 'node:path'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { acquireNginx, acquireOpenssl11 } from '@tollward/acquire'
import {
  eventually,
  freePort,
  type RunningProcess,
  requires,
  startProcess,
  temporaryDirectory,
} from '@tollward/testkit'
import {
  compileCalls,
  type KeptChunk,
  makeCertificate,
  needsProbes,
  PROGRAMS,
  startCalls,
  THIS_NODE,
  tally,
} from '../test-calls.ts'
import { systemLibraries } from './call-targets.ts'

const needsPython = needsProbes || (await requires({ tools: ['python3', 'curl'] }))
const needsNginx = needsProbes || (await requires({ tools: ['nginx'] }))
const needsWget = needsProbes || (await requires({ tools: ['wget'] }))
/** Debian's package android-libboringssl. */
const BORINGSSL = '/usr/lib/x86_64-linux-gnu/android/libssl.so.0'
const needsBoring = needsProbes || (await requires({ tools: ['python3'], files: [BORINGSSL] }))
const needsOpenssl11 = needsProbes || (await requires({ tools: ['python3', 'openssl-1.1'] }))
const run = promisify(execFile)
/** `npm run soak -- calls` makes so many times as many calls. */
const TIMES = Number(process.env.TOLLWARD_SOAK_TIMES ?? 1)
const LOAD_TIMEOUT_MS = 60_000 * TIMES

if (!needsProbes) await compileCalls()

/** Calls of both sides: each call is a question and an answer, at the client and at the server. */
const saying = (chunks: readonly KeptChunk[]) => chunks.filter(({ text }) => /port=\d/.test(text)).length

async function isAccepting(port: number): Promise<boolean> {
  const socket = connect({ port, host: '127.0.0.1' })
  await once(socket, 'connect')
  socket.destroy()
  return true
}

function nginxConfiguration({
  directory,
  port,
  key,
  cert,
}: Record<'directory' | 'key' | 'cert', string> & { port: number }) {
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (name) => `${name}_temp_path ${directory}/${name};`,
  )
  return `daemon off; user root; worker_processes 2; pid ${directory}/pid; events {}
http { access_log off; ${temporary.join(' ')} server { listen 127.0.0.1:${port} ssl; keepalive_requests 1000000;
ssl_certificate ${cert}; ssl_certificate_key ${key};
location / { add_header x-client "port=$remote_port"; return 200 "answer to $request_uri"; } } }`
}

async function startNode(program: string, args: readonly (string | number)[]): Promise<RunningProcess> {
  return await startProcess(process.execPath, ['-e', program, ...args.map(String)])
}

async function portsOf(server: RunningProcess): Promise<number[]> {
  return (await server.line(/^port /)).split(' ').slice(1).map(Number)
}

test('calls of a Node server and client are tied to the connection that carried them', {
  skip: needsProbes,
}, async () => {
  await using directory = await temporaryDirectory()
  const { key, cert } = await makeCertificate(directory.path)
  await using server = await startNode(PROGRAMS.nodeServer, [key, cert])
  const [port = 0] = await portsOf(server)
  await using calls = await startCalls()
  await calls.probed(THIS_NODE)
  await using client = await startNode(PROGRAMS.nodeClient, [port, 50, 40 * TIMES, 7])
  calls.keep(({ owner }) => owner.pid === server.pid || owner.pid === client.pid)
  await client.line(/^done/, LOAD_TIMEOUT_MS)
  // The first calls may be over before the programs know which processes these are.
  const chunks = await calls.until('all calls are captured', (seen) => saying(seen) >= 8000 * TIMES)
  assert.deepEqual(tally(chunks, port), { right: 8000 * TIMES, wrong: 0, unbound: 0 })
  assert(chunks.every(({ source }) => source === 'node'))
  assert.deepEqual([...new Set(chunks.map(({ side, owner }) => `${side} ${owner.pid}`))].sort(), [
    `client ${client.pid}`,
    `server ${server.pid}`,
  ])
})

test('calls of Python threads and of curl are tied for certain, as the library uses the socket', {
  skip: needsPython,
}, async () => {
  await using directory = await temporaryDirectory()
  const { key, cert } = await makeCertificate(directory.path)
  await using server = await startProcess('python3', ['-c', PROGRAMS.pythonThreads, key, cert])
  const [port = 0] = await portsOf(server)
  await using calls = await startCalls({}, { libraries: systemLibraries() })
  calls.keep(({ owner, addresses }) => owner.pid === server.pid || addresses?.peerPort === port)
  await calls.probed(/libssl/)
  await using client = await startNode(PROGRAMS.nodeClient, [port, 8, 25 * TIMES, 5])
  await client.line(/^done/, LOAD_TIMEOUT_MS)
  await run('curl', ['-sk', ...Array.from({ length: 20 }, (_, n) => `https://127.0.0.1:${port}/curl/${n}`)])
  const isServer = ({ owner }: KeptChunk) => owner.pid === server.pid
  const isCurl = ({ owner, closed }: KeptChunk) => owner.comm === 'curl' && !closed
  // The server writes head and body apart; of a call of curl, only the head of the answer says the port.
  const chunks = await calls.until(
    'all calls are captured',
    (seen) => saying(seen.filter(isServer)) >= 600 * TIMES + 20 && seen.filter(isCurl).length >= 60,
  )
  assert.deepEqual(tally(chunks.filter(isServer), port), { right: 600 * TIMES + 20, wrong: 0, unbound: 0 })
  assert.deepEqual(tally(chunks.filter(isCurl), port), { right: 20, wrong: 0, unbound: 0 })
  const kinds = chunks
    .filter((chunk) => isServer(chunk) || isCurl(chunk))
    .map(({ binding, side }) => `${binding} ${side}`)
  assert.deepEqual([...new Set(kinds)].sort(), ['certain client', 'certain server'])
})

test('in one thread that serves TLS and text and calls upstream by TLS, no call is tied to another connection', {
  skip: needsPython,
}, async () => {
  await using directory = await temporaryDirectory()
  const { key, cert } = await makeCertificate(directory.path)
  await using upstream = await startNode(PROGRAMS.nodeServer, [key, cert])
  const [upstreamPort = 0] = await portsOf(upstream)
  await using mixed = await startProcess('python3', ['-c', PROGRAMS.pythonAsyncio, key, cert, String(upstreamPort)])
  const [tlsPort = 0, plainPort = 0] = await portsOf(mixed)
  await using calls = await startCalls({}, { libraries: systemLibraries() })
  await calls.probed(/libssl/)
  calls.keep(({ owner }) => owner.pid === mixed.pid)
  await using direct = await startNode(PROGRAMS.nodeClient, [tlsPort, 10, 60 * TIMES, 7])
  await using plain = await startNode(PROGRAMS.plainClient, [plainPort, 10, 60 * TIMES])
  await Promise.all([direct.line(/^done/, LOAD_TIMEOUT_MS), plain.line(/^done/, LOAD_TIMEOUT_MS)])
  const chunks = await calls.until('all calls are captured', (seen) => saying(seen) >= 2400 * TIMES)
  const upstreams = chunks.filter(({ addresses }) => addresses?.peerPort === upstreamPort)
  const servers = chunks.filter(({ addresses }) => addresses?.localPort === tlsPort)
  assert.deepEqual(tally(upstreams, upstreamPort), { right: 1200 * TIMES, wrong: 0, unbound: 0 })
  assert.deepEqual(tally(servers, tlsPort), { right: 1200 * TIMES, wrong: 0, unbound: 0 })
  assert.equal(saying(chunks), 2400 * TIMES)
})

test('what was deciphered from a buffer stays with its connection, whatever the thread read meanwhile', {
  skip: needsPython,
}, async () => {
  await using directory = await temporaryDirectory()
  const { key, cert } = await makeCertificate(directory.path)
  await using server = await startNode(PROGRAMS.nodeServer, [key, cert])
  const [port = 0] = await portsOf(server)
  await using calls = await startCalls({}, { libraries: systemLibraries() })
  await calls.probed(/libssl/)
  await using program = await startProcess('python3', ['-c', PROGRAMS.pythonBuffers, String(port), String(20 * TIMES)])
  calls.keep(({ owner }) => owner.pid === program.pid)
  await program.line(/^done/, LOAD_TIMEOUT_MS)
  const chunks = await calls.until('all calls are captured', (seen) => saying(seen) >= 300 * TIMES)
  assert.deepEqual(tally(chunks, port), { right: 300 * TIMES, wrong: 0, unbound: 0 })
})

test('calls of nginx are tied for certain to the connection that carried them', { skip: needsNginx }, async () => {
  await using directory = await temporaryDirectory()
  const { key, cert } = await makeCertificate(directory.path)
  const port = await freePort()
  const path = join(directory.path, 'nginx.conf')
  await writeFile(path, nginxConfiguration({ directory: directory.path, port, key, cert }))
  await using calls = await startCalls({}, { libraries: systemLibraries() })
  calls.keep(({ addresses }) => addresses?.localPort === port)
  const tool = await acquireNginx()
  await using nginx = await startProcess(tool.command, [...tool.args, '-p', directory.path, '-c', path, '-e', 'stderr'])
  await eventually(() => isAccepting(port), { what: 'nginx accepts' })
  await calls.probed(/libssl/)
  await using client = await startNode(PROGRAMS.nodeClient, [port, 20, 20 * TIMES, 6])
  await client.line(/^done/, LOAD_TIMEOUT_MS)
  const chunks = await calls.until('all calls are captured', (seen) => saying(seen) >= 800 * TIMES)
  assert.deepEqual(tally(chunks, port), { right: 800 * TIMES, wrong: 0, unbound: 0 })
  assert(chunks.every(({ binding }) => binding === 'certain'))
  assert.notEqual(chunks[0]?.owner.pid, nginx.pid, 'its workers')
})

test('calls of a client with GnuTLS are tied for certain to the connection that carried them', {
  skip: needsWget,
}, async () => {
  await using directory = await temporaryDirectory()
  const { key, cert } = await makeCertificate(directory.path)
  await using server = await startNode(PROGRAMS.nodeServer, [key, cert])
  const [port = 0] = await portsOf(server)
  await using calls = await startCalls({}, { libraries: systemLibraries() })
  await calls.probed(/libgnutls/)
  calls.keep(({ addresses, source }) => addresses?.peerPort === port && source === 'gnutls')
  const urls = Array.from({ length: 10 }, (_, n) => `https://127.0.0.1:${port}/${n}`)
  await run('wget', ['-q', '--no-check-certificate', '-O', '-', ...urls])
  // It ends without freeing its TLS object: no end is told.
  const data = await calls.until('all calls are captured', (seen) => saying(seen) >= 10)
  assert.deepEqual(tally(data, port), { right: 10, wrong: 0, unbound: 0 })
  assert.equal(data.filter(({ text }) => text.startsWith('GET /')).length, 10)
  assert.deepEqual([...new Set(data.map(({ binding, side }) => `${binding} ${side}`))], ['certain client'])
})

for (const { name, skip, source, libraries } of [
  { name: 'BoringSSL', skip: needsBoring, source: 'boringssl', libraries: async () => [BORINGSSL] },
  { name: 'OpenSSL 1.1', skip: needsOpenssl11, source: 'openssl', libraries: () => acquireOpenssl11() },
])
  test(`calls of a client with ${name} are tied for certain to the connection that carried them, to its end`, {
    skip,
  }, async () => {
    await using directory = await temporaryDirectory()
    const { key, cert } = await makeCertificate(directory.path)
    await using server = await startNode(PROGRAMS.nodeServer, [key, cert])
    const [port = 0] = await portsOf(server)
    const loaded = await libraries()
    await using calls = await startCalls({}, { libraries: loaded.slice(-1) })
    await calls.probed(new RegExp(RegExp.escape(basename(loaded.at(-1) ?? ''))))
    calls.keep((chunk) => chunk.source === source && chunk.addresses?.peerPort === port)
    const [connections, each] = [10, 20 * TIMES]
    await run('python3', ['-c', PROGRAMS.libraryClient, ...[port, connections, each].map(String), ...loaded])
    const isOver = (seen: readonly KeptChunk[]) => seen.filter(({ closed }) => closed).length >= connections
    const seen = await calls.until('all ends are told', isOver)
    assert.deepEqual(tally(seen, port), { right: 2 * connections * each, wrong: 0, unbound: 0 })
    assert.deepEqual([...new Set(seen.map(({ binding, side }) => `${binding} ${side}`))], ['certain client'])
  })

test('on a kernel without socket tracepoints and links of many probes, calls inside TLS are still tied to their connections', {
  skip: needsProbes,
}, async () => {
  await using directory = await temporaryDirectory()
  const { key, cert } = await makeCertificate(directory.path)
  await using server = await startNode(PROGRAMS.nodeServer, [key, cert])
  const [port = 0] = await portsOf(server)
  await using calls = await startCalls(
    {},
    { features: { socketTracepoints: false, uprobeMulti: false, safeReturnProbes: true } },
  )
  assert.equal(calls.kernel.missing.length, 2)
  await calls.probed(THIS_NODE)
  await using client = await startNode(PROGRAMS.nodeClient, [port, 10, 20, 7])
  calls.keep(({ owner }) => owner.pid === server.pid || owner.pid === client.pid)
  await client.line(/^done/, LOAD_TIMEOUT_MS)
  const chunks = await calls.until('all calls are captured', (seen) => saying(seen) >= 800)
  assert.deepEqual(tally(chunks, port), { right: 800, wrong: 0, unbound: 0 })
})
