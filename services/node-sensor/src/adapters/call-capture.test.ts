import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { connect } from 'node:net'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { eventually, freePort, requires, startProcess, temporaryDirectory } from '@tollward/testkit'
import { pino } from 'pino'
import {
  compileCalls,
  type KeptChunk,
  makeCertificate,
  needsProbes,
  PROGRAMS,
  startCalls,
  type TestCalls,
  THIS_NODE,
} from '../test-calls.ts'
import { callFeatures } from './call-kernel.ts'
import { CallTargets, systemLibraries } from './call-targets.ts'

const skip = needsProbes || (await requires({ tools: ['python3'] }))
const run = promisify(execFile)

if (!skip) await compileCalls()

/** Both ends of a connection in one process; what it does is appended. */
const PAIR = `
import os, socket, sys, tempfile
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
client = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
server, _ = listener.accept()
def whole(sock, length, *flags):
    got = b''
    while len(got) < length: got += sock.recv(length - len(got), *flags)
    return got
`

/** Runs Python code between two ends of a connection, and gives what was captured of it until both ended. */
async function captured(calls: TestCalls, port: number, code: string): Promise<KeptChunk[]> {
  calls.chunks.length = 0
  calls.keep(({ addresses }) => addresses?.localPort === port || addresses?.peerPort === port)
  await run('python3', ['-c', `${PAIR}${code}\nclient.close()\nserver.close()`, String(port)])
  const seen = await calls.until('both ends ended', (chunks) => chunks.filter(({ closed }) => closed).length === 2)
  return seen.filter(({ closed }) => !closed)
}

const told = (
  chunks: readonly KeptChunk[],
  port: number,
  direction: KeptChunk['direction'],
  side: 'client' | 'server',
) =>
  chunks
    .filter((chunk) => chunk.direction === direction && (chunk.addresses?.localPort === port) === (side === 'server'))
    .map(({ text, total, skipped }) => [text, total, skipped])

test('each way to write to and read from a socket is captured as it was', { skip }, async () => {
  const port = await freePort()
  await using calls = await startCalls({ clearPorts: [port] })
  const ways = {
    write: `os.write(client.fileno(), b'one way'); os.read(server.fileno(), 7)`,
    send: `client.send(b'one way'); server.recv(7)`,
    writev: `os.writev(client.fileno(), [b'one', b'', b' way']); os.readv(server.fileno(), [bytearray(3), bytearray(9)])`,
    sendmsg: `client.sendmsg([b'one', b' way']); server.recvmsg(3); server.recvmsg_into([bytearray(4)])`,
  }
  for (const [way, code] of Object.entries(ways)) {
    const chunks = await captured(calls, port, code)
    const sent = told(chunks, port, 'sent', 'client')
    const received = told(chunks, port, 'received', 'server')
    assert.equal(sent.map(([text]) => text).join(''), 'one way', way)
    assert.equal(received.map(([text]) => text).join(''), 'one way', way)
    assert(
      chunks.every(({ skipped, total, text }) => skipped === 0 && total === text.length),
      way,
    )
    assert.deepEqual([...new Set(chunks.map(({ side, binding, source }) => `${side} ${binding} ${source}`))].sort(), [
      'client certain clear',
      'server certain clear',
    ])
  }
})

test('what was only looked at is not captured twice, and what was thrown away or sent from a file is told by its size', {
  skip,
}, async () => {
  const port = await freePort()
  await using calls = await startCalls({ clearPorts: [port] })
  const peeked = await captured(calls, port, `client.send(b'look'); server.recv(4, socket.MSG_PEEK); server.recv(4)`)
  assert.deepEqual(told(peeked, port, 'received', 'server'), [['look', 4, 0]])
  const dropped = await captured(
    calls,
    port,
    `client.send(b'gone'); buffer = bytearray(b'old!'); server.recv_into(buffer, 4, socket.MSG_TRUNC); client.send(b'kept'); server.recv(4)`,
  )
  assert.deepEqual(told(dropped, port, 'received', 'server'), [
    ['', 4, 0],
    ['kept', 4, 0],
  ])
  const filed = await captured(
    calls,
    port,
    `file = tempfile.TemporaryFile(); file.write(b'x' * 1000); file.flush(); os.sendfile(client.fileno(), file.fileno(), 0, 1000); whole(server, 1000)`,
  )
  const sent = told(filed, port, 'sent', 'client')
  assert.deepEqual(
    [sent.map(([text]) => text).join(''), sent.reduce((sum, [, total]) => sum + Number(total), 0)],
    ['', 1000],
  )
})

test('of a long write only the beginning is captured, and its whole length is told', { skip }, async () => {
  const port = await freePort()
  await using calls = await startCalls({ clearPorts: [port], payloadBytesMax: 600 })
  const chunks = await captured(
    calls,
    port,
    `client.sendall(b'a' * 5000); whole(server, 5000, socket.MSG_WAITALL); client.sendall(b'b' * 600); whole(server, 600)`,
  )
  for (const chunks_ of [told(chunks, port, 'sent', 'client'), told(chunks, port, 'received', 'server')])
    assert.deepEqual(chunks_, [
      ['a'.repeat(600), 5000, 0],
      ['b'.repeat(600), 600, 0],
    ])
  assert.equal(calls.kernel.count('truncated') >= 8800n, true)
})

test('of a connection of HTTP/2, the frames of a write are captured up to a record of TLS', { skip }, async () => {
  const port = await freePort()
  await using calls = await startCalls({ clearPorts: [port], payloadBytesMax: 600 })
  const chunks = await captured(
    calls,
    port,
    `
def pass_on(one, other, data): one.sendall(data); whole(other, len(data), socket.MSG_WAITALL)
pass_on(client, server, b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n')
pass_on(client, server, b'a' * 16384)
pass_on(server, client, b'b' * 17000)`,
  )
  assert.deepEqual(
    told(chunks, port, 'received', 'server').map(([text]) => String(text).length),
    [24, 16_384],
  )
  assert.deepEqual(
    told(chunks, port, 'sent', 'server').map(([text, total]) => [String(text).length, total]),
    [[16_384, 17_000]],
  )
})

test('what a write has in more segments than are read is told as skipped by the next', { skip }, async () => {
  const port = await freePort()
  await using calls = await startCalls({ clearPorts: [port] })
  const chunks = await captured(
    calls,
    port,
    `client.sendmsg([b'ab'] * 34); whole(server, 68); client.send(b'next'); whole(server, 4)`,
  )
  const sent = told(chunks, port, 'sent', 'client')
  assert.deepEqual(sent, [...Array.from({ length: 32 }, () => ['ab', 2, 0]), ['next', 4, 4]])
})

test('a cgroup beyond its budget loses records, not the knowledge of how much', { skip }, async () => {
  const port = await freePort()
  // A byte a second after the first 1,000.
  await using calls = await startCalls({ clearPorts: [port], cgroupBytesPerSecond: 1, cgroupBurstBytes: 1000 })
  calls.keep(({ addresses }) => addresses?.localPort === port || addresses?.peerPort === port)
  await run('python3', [
    '-c',
    `${PAIR}\nfor _ in range(20): client.sendall(b'x' * 100); whole(server, 100)\n`,
    String(port),
  ])
  const chunks = await calls.until('both ends ended', (seen) => seen.filter(({ closed }) => closed).length === 2)
  const data = chunks.filter(({ closed }) => !closed)
  assert(data.length <= 11, `${data.length} records of 100 bytes from a budget of 1,000`)
  assert(calls.kernel.count('budget') >= 29n)
})

test('a ring without room loses records, and the next says how many bytes', { skip }, async () => {
  const port = await freePort()
  // Without probes: the TLS calls of other tests would fill it.
  const features = { ...callFeatures(), safeReturnProbes: false }
  await using calls = await startCalls({ clearPorts: [port], ringBytes: 4096 }, { features })
  calls.keep(({ addresses }) => addresses?.localPort === port)
  calls.pause()
  const code = `${PAIR}
for _ in range(50): client.sendall(b'x' * 100); whole(server, 100)
print('half', flush=True)
listener.accept()
client.sendall(b'last'); whole(server, 4)`
  await using program = await startProcess('python3', ['-c', code, String(port)])
  await program.line(/^half/)
  calls.resume()
  calls.read()
  const socket = connect({ port, host: '127.0.0.1' })
  await once(socket, 'connect')
  socket.destroy()
  const chunks = await calls.until('the last write is read', (seen) => seen.some(({ text }) => text === 'last'))
  const received = told(chunks, port, 'received', 'server')
  const before = received.slice(0, -1).length
  assert(before > 0 && before < 10, `${before} records of 624 bytes in 4 KiB`)
  assert.deepEqual(received.at(-1), ['last', 4, (50 - before) * 100])
  assert(calls.kernel.count('ringFull') > 80n)
})

test('of connections in the clear, one that carries TLS is left out', { skip }, async () => {
  await using directory = await temporaryDirectory()
  const { key, cert } = await makeCertificate(directory.path)
  await using server = await startProcess(process.execPath, ['-e', PROGRAMS.nodeServer, key, cert])
  const port = Number((await server.line(/^port /)).split(' ')[1])
  await using calls = await startCalls({ clearPorts: [port] })
  await calls.probed(THIS_NODE)
  await using client = await startProcess(process.execPath, ['-e', PROGRAMS.nodeClient, `${port}`, '2', '5', '5'])
  calls.keep(({ addresses }) => addresses?.localPort === port || addresses?.peerPort === port)
  await client.line(/^done 10/)
  const chunks = await calls.until(
    'calls within TLS',
    (seen) => seen.filter(({ text }) => /port=/.test(text)).length >= 40,
  )
  assert.deepEqual([...new Set(chunks.map(({ source }) => source))], ['node'])
})

test('text that happens to begin as a record of TLS is captured all the same, and TLS after text is not', {
  skip,
}, async () => {
  const port = await freePort()
  await using calls = await startCalls({ clearPorts: [port] })
  const chunks = await captured(
    calls,
    port,
    `
def pass_on(data): client.sendall(data); whole(server, len(data))
pass_on(b'EHLO')
pass_on(bytes([0x17, 3, 3, 0, 9, 9, 9]))
pass_on(b'STARTTLS')
pass_on(bytes([0x16, 3, 1, 0, 9, 1, 0]))
pass_on(b'enciphered')`,
  )
  for (const [direction, side] of [
    ['sent', 'client'],
    ['received', 'server'],
  ] as const)
    assert.deepEqual(
      told(chunks, port, direction, side).map(([text]) => text),
      ['EHLO', '\x17\x03\x03\x00\x09\x09\x09', 'STARTTLS'],
      side,
    )
})

test('of connections, one in so many is captured, and that one whole', { skip }, async () => {
  const port = await freePort()
  await using calls = await startCalls({ clearPorts: [port], sampleOneIn: 4 })
  calls.keep(({ addresses }) => addresses?.localPort === port)
  const code = `
import socket, sys
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
for _ in range(400):
    client = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
    server, _ = listener.accept()
    for part in (b'a', b'b', b'c'): client.send(part); server.recv(1)
    client.close(); server.close()`
  await run('python3', ['-c', code, String(port)])
  calls.read()
  const texts = new Map<bigint, string>()
  for (const { connection, text, closed } of calls.chunks)
    texts.set(connection, `${texts.get(connection) ?? ''}${closed ? '.' : text}`)
  assert(texts.size > 60 && texts.size < 140, `${texts.size} of 400`)
  assert.deepEqual([...new Set(texts.values())], ['abc.'])
  assert(calls.kernel.count('unsampled') >= 500n)
})

test('a call that meets two probes on one instruction is captured once', { skip }, async () => {
  await using directory = await temporaryDirectory()
  const { key, cert } = await makeCertificate(directory.path)
  await using server = await startProcess(process.execPath, ['-e', PROGRAMS.nodeServer, key, cert])
  const port = Number((await server.line(/^port /)).split(' ')[1])
  await using calls = await startCalls({}, { libraries: systemLibraries() })
  calls.keep(({ owner, addresses }) => owner.pid === server.pid || addresses?.peerPort === port)
  const stop = new AbortController()
  await using again = new CallTargets({
    kernel: calls.kernel,
    libraries: systemLibraries(),
    log: pino({ level: 'silent' }),
  })
  const running = again.run(stop.signal)
  const both = (targets: CallTargets) =>
    [THIS_NODE, /libssl/].every((wanted) => targets.targets.some(({ path }) => wanted.test(path)))
  await eventually(() => both(again) && both(calls.targets), {
    timeoutMs: 30_000,
    what: 'all is probed twice',
  })
  await run('curl', ['-sk', `https://127.0.0.1:${port}/once`])
  const chunks = await calls.until('both ends ended', (seen) => seen.filter(({ closed }) => closed).length >= 2)
  const said = chunks.map(({ text, source, direction, binding, closed }) =>
    closed ? 'end' : `${source} ${direction} ${text.slice(0, 4)} ${binding}`,
  )
  assert.deepEqual(said.sort(), [
    ...['end', 'end', 'node received GET  token', 'node sent HTTP token'],
    ...['openssl received HTTP certain', 'openssl sent GET  certain'],
  ])
  stop.abort()
  await running
})
