import assert from 'node:assert/strict'

import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { connect } from 'node:tls'
import { Binding, Side } from '@tollward/contracts/sensor'
import {
  eventually,
  type GoBuild,
  goCallsProgram,
  type RunningProcess,
  requires,
  startNatsServer,
  startProcess,
  temporaryDirectory,
} from '@tollward/testkit'
import {
  compileCalls,
  type KeptChunk,
  makeCertificate,
  needsProbes,
  startCalls,
  type TestCalls,
  tally,
} from '../test-calls.ts'
import { startCapture } from '../test-capture.ts'
import { decidingBus } from '../test-node.ts'

const skip = needsProbes || (await requires({ tools: ['go'] }))
const skipBus = skip || (await requires({ tools: ['nats-server'] }))
const CALLS = 200
/** All that a machine that is busy with other tests does not read at once. */
const RING_BYTES = 64 * 1024 * 1024
/** In the header of what Go tells of a build. */
const BUILD_FLAGS = 15
/** `npm run soak -- calls` makes so many times as many calls. */
const TIMES = Number(process.env.TOLLWARD_SOAK_TIMES ?? 1)
const LOAD_TIMEOUT_MS = 60_000 * TIMES
const PATIENCE_MS = 30_000
/** `npm run soak -- calls` does so a thousand times. */
const ROUNDS = process.env.TOLLWARD_SOAK_TIMES === undefined ? 10 : 1000

if (!skip) await compileCalls()

/** Calls of both sides: each call is a question and an answer, at the client and at the server. */
const saying = (chunks: readonly KeptChunk[]) => chunks.filter(({ text }) => /port=\d/.test(text)).length

async function startGo(build: GoBuild, ...args: (string | number)[]): Promise<RunningProcess> {
  return await startProcess(await goCallsProgram(build), args.map(String))
}

async function startServer(directory: string, build: GoBuild) {
  const { key, cert } = await makeCertificate(directory)
  const server = await startGo(build, 'serve', key, cert)
  const port = Number((await server.line(/^port /)).split(' ')[1])
  return { port, server, pid: server.pid, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() }
}

async function probed(calls: TestCalls, ...builds: GoBuild[]): Promise<void> {
  for (const build of builds) await calls.probed(new RegExp(`/${build}$`))
}

const PAIRS: readonly (readonly [server: GoBuild, client: GoBuild])[] = [
  ['stripped', 'plain'],
  ['pie', 'debug'],
  ['debug', 'linkedByC'],
]

for (const [serving, asking] of PAIRS)
  test(`calls of a Go server (${serving}) and client (${asking}) are tied for certain to the connection that carried them`, {
    skip,
  }, async () => {
    await using directory = await temporaryDirectory()
    await using server = await startServer(directory.path, serving)
    await using waiting = await startServer(directory.path, asking)
    await using calls = await startCalls({ ringBytes: RING_BYTES })
    await probed(calls, serving, asking)
    await using client = await startGo(asking, 'ask', server.port, 20, 40 * TIMES, 7, 'plain')
    calls.keep(({ owner }) => owner.pid === server.pid || owner.pid === client.pid)
    await client.line(/^done/, LOAD_TIMEOUT_MS)
    const chunks = await calls.until('all calls are captured', (seen) => saying(seen) >= 3200 * TIMES)
    assert.deepEqual(tally(chunks, server.port), { right: 3200 * TIMES, wrong: 0, unbound: 0 })
    assert.deepEqual(
      [...new Set(chunks.map((one) => `${one.source} ${one.binding} ${one.side} ${one.owner.pid}`))].sort(),
      [`go certain client ${client.pid}`, `go certain server ${server.pid}`],
    )
    assert.equal(calls.kernel.count('rebound'), 0n)
    assert(waiting.port > 0)
  })

test('of a connection of another type, the TCP connection that it holds is taken for a guess', { skip }, async () => {
  await using directory = await temporaryDirectory()
  await using server = await startServer(directory.path, 'stripped')
  await using calls = await startCalls({ ringBytes: RING_BYTES })
  await probed(calls, 'stripped')
  await using client = await startGo('stripped', 'ask', server.port, 5, 20, 7, 'wrapped')
  calls.keep(({ owner }) => owner.pid === server.pid || owner.pid === client.pid)
  await client.line(/^done/, LOAD_TIMEOUT_MS)
  const chunks = await calls.until('all calls are captured', (seen) => saying(seen) >= 400)
  assert.deepEqual(tally(chunks, server.port), { right: 400, wrong: 0, unbound: 0 })
  assert.deepEqual([...new Set(chunks.map(({ binding, side }) => `${side} ${binding}`))].sort(), [
    'client token',
    'server certain',
  ])
})

test('of a connection that only its methods know, the socket that the goroutine read is taken for a guess', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  await using server = await startServer(directory.path, 'stripped')
  await using calls = await startCalls({ ringBytes: RING_BYTES })
  await probed(calls, 'stripped')
  await using client = await startGo('stripped', 'ask', server.port, 10, 400, 100, 'hidden')
  calls.keep(({ owner }) => owner.pid === client.pid)
  await client.line(/^done/, LOAD_TIMEOUT_MS)
  const chunks = await calls.until('all calls are captured', (seen) => saying(seen) >= 8000)
  const { right, wrong, unbound } = tally(chunks, server.port)
  assert.deepEqual([right + unbound, wrong], [8000, 0])
  // Nothing is known of the first question of each of 40 connections, nor while a thread runs that was not seen before.
  assert(unbound >= 40 && unbound < 200, `${unbound} are not tied`)
  const received = chunks.filter(({ addresses }) => addresses)
  assert.deepEqual([...new Set(received.map(({ binding }) => binding))], ['token'])
})

test('the end of a connection is told once, and what follows in its memory is another connection', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  await using server = await startServer(directory.path, 'stripped')
  await using calls = await startCalls({ ringBytes: RING_BYTES })
  await probed(calls, 'stripped')
  await using client = await startGo('stripped', 'abandon', server.port, 200)
  calls.keep(({ owner }) => owner.pid === server.pid || owner.pid === client.pid)
  await client.line(/^done/, LOAD_TIMEOUT_MS)
  const ended = (seen: readonly KeptChunk[]) => seen.filter(({ closed, owner }) => closed && owner.pid === server.pid)
  const chunks = await calls.until('the server closed all', (seen) => ended(seen).length >= 200)
  assert.equal(new Set(ended(chunks).map(({ connection }) => connection)).size, 200)
  assert.deepEqual(tally(chunks, server.port), { right: 800, wrong: 0, unbound: 0 })
  const ports = new Map<bigint, Set<number | undefined>>()
  for (const { connection, addresses, owner } of chunks.filter(({ closed }) => !closed)) {
    const port = owner.pid === server.pid ? addresses?.peerPort : addresses?.localPort
    ports.set(connection, (ports.get(connection) ?? new Set()).add(port))
  }
  assert.equal(ports.size, 400)
  assert(
    [...ports.values()].every(({ size }) => size === 1),
    'each is of one connection',
  )
})

test('a connection that waited for its next call before the probes came is read from that call on', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  await using server = await startServer(directory.path, 'pie')
  const socket = connect({ port: server.port, host: '127.0.0.1', rejectUnauthorized: false })
  const ask = async (path: string) => {
    socket.write(`GET ${path} HTTP/1.1\r\nhost: localhost\r\n\r\n`)
    await once(socket, 'data')
  }
  await once(socket, 'secureConnect')
  await ask('/before')
  await using calls = await startCalls()
  await probed(calls, 'pie')
  calls.keep(({ owner }) => owner.pid === server.pid)
  await ask('/after')
  const chunks = await calls.until('it is captured', (seen) => seen.some(({ direction }) => direction === 'sent'))
  const asked = chunks.filter(({ direction }) => direction === 'received')
  assert.match(asked.map(({ text }) => text).join(''), /^GET \/after HTTP/)
  assert.deepEqual(
    [...new Set(chunks.map((one) => `${one.binding} ${one.side} ${one.addresses?.peerPort}`))],
    [`certain server ${socket.localPort}`],
  )
  socket.destroy()
})

test('calls of Go by HTTP/1.1, HTTP/2 and gRPC are told as the server logs them, at both ends', {
  skip: skipBus,
}, async () => {
  await using directory = await temporaryDirectory()
  await using nats = await startNatsServer()
  await using bus = await decidingBus(nats.url)
  await using server = await startServer(directory.path, 'stripped')
  await using captured = await startCapture(bus)
  const { calls, stop, capture } = captured
  const path = await goCallsProgram('stripped')
  await eventually(() => capture.targets.some((target) => target.path === path), { what: 'the program is probed' })
  for (const [mode, ...rest] of [
    ['ask-http1', CALLS, 5],
    ['ask-h2', CALLS, 4],
  ]) {
    await using client = await startGo('stripped', String(mode), server.port, ...rest)
    assert.equal(await client.exited, 0)
  }
  const ours = (side: Side) => calls.filter((call) => call.side === side && /^\/(https|shop\.Orders)\//.test(call.path))
  await eventually(() => [Side.SERVER, Side.CLIENT].every((side) => ours(side).length >= 2 * CALLS), {
    what: 'all calls are told',
    timeoutMs: PATIENCE_MS,
  })
  await stop()
  const logged = server.server.lines.filter((line) => line.startsWith('call ')).sort()
  assert.equal(logged.length, 2 * CALLS)
  for (const side of [Side.SERVER, Side.CLIENT]) {
    const told = ours(side).map((call) => {
      const { method, status, requestBytes, responseBytes, peerPort, localPort, grpcStatus } = call
      const port = side === Side.SERVER ? peerPort : localPort
      const line = `call ${method} ${call.path} ${status} ${requestBytes} ${responseBytes} ${port}`
      return grpcStatus === undefined ? line : `${line} ${grpcStatus}`
    })
    assert.deepEqual(told.sort(), logged, side === Side.SERVER ? 'the server' : 'the client')
    for (const { source, binding, credentials, protocol, path: of } of ours(side)) {
      const kind = of.startsWith('/https') ? 'http/1.1' : 'grpc'
      assert.deepEqual([source, binding, protocol, credentials], ['go', Binding.CERTAIN, kind, ['bearer']])
    }
  }
})

test('probes put on and taken off Go programs again and again under load change nothing for them', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  await using server = await startServer(directory.path, 'stripped')
  // Each answer is compared with its question; the first that is another ends it.
  await using client = await startGo('pie', 'ask', server.port, 10, 1_000_000, 20, 'plain')
  for (let round = 0; round < ROUNDS; round++) {
    await using calls = await startCalls()
    await probed(calls, 'stripped', 'pie')
    calls.keep(({ owner }) => owner.pid === server.pid)
    await calls.until('calls are captured', (chunks) => chunks.length > 200)
    assert.equal(tally(calls.chunks, server.port).wrong, 0)
  }
  assert.deepEqual(client.lines, [])
  assert.deepEqual(
    [await client.kill(), await server.server.kill()],
    ['SIGKILL', 'SIGKILL'],
    'both were alive until now',
  )
})

test('a program of a Go that is not supported is told with the reason while it runs, and nothing of it is probed', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'old')
  const program = await readFile(await goCallsProgram('stripped'))
  const info = program.indexOf('\xff Go buildinf:', 0, 'latin1')
  program[info + BUILD_FLAGS] = 0
  await writeFile(path, program, { mode: 0o755 })
  const { key, cert } = await makeCertificate(directory.path)
  await using calls = await startCalls({}, { scanIntervalMs: 100 })
  {
    await using server = await startProcess(path, ['serve', key, cert])
    await server.line(/^port /)
    await eventually(() => calls.targets.unsupported.length > 0, { what: 'it is told', timeoutMs: PATIENCE_MS })
    const [told] = calls.targets.unsupported.filter((target) => target.path === path)
    assert.deepEqual([told?.source, /Go older than 1\.18/.test(told?.why ?? '')], ['go', true])
    assert(calls.targets.targets.every((target) => target.path !== path))
  }
  await eventually(() => calls.targets.unsupported.every((target) => target.path !== path), {
    ...{ what: 'it is told no more', timeoutMs: PATIENCE_MS },
  })
})
