import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseRange } from '@tollward/contracts'
import { Binding, Side } from '@tollward/contracts/sensor'
import { eventually, requires, startNatsServer, startProcess, temporaryDirectory } from '@tollward/testkit'
import { makeCertificate, needsProbes, THIS_NODE } from '../test-calls.ts'
import { startCapture } from '../test-capture.ts'
import { LOGGED } from '../test-logged.ts'
import { decidingBus } from '../test-node.ts'

const skip = needsProbes || (await requires({ root: true, tools: ['nats-server'] }))
const CALLS = 200
/** Others on this machine make calls at the same time. */
const OURS = /^\/(https?|shop\.Orders)\//
interface Ports {
  readonly https: number
  readonly http: number
  readonly h2: number
}

const TOLD = {
  https: ({ https }: Ports) => [https, 'node', 'http/1.1'],
  http: ({ http }: Ports) => [http, 'clear', 'http/1.1'],
  'shop.Orders': ({ h2 }: Ports) => [h2, 'node', 'grpc'],
} as const
test('calls of real servers, inside TLS and in the clear, are told as the servers log them, each with its connection', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  await using nats = await startNatsServer()
  await using bus = await decidingBus(nats.url)
  const { key, cert } = await makeCertificate(directory.path)
  await using server = await startProcess(process.execPath, ['-e', LOGGED.server, key, cert])
  const ports = {
    https: Number((await server.line(/^tls \d+/)).split(' ')[1]),
    http: Number((await server.line(/^clear \d+/)).split(' ')[1]),
    h2: Number((await server.line(/^h2 \d+/)).split(' ')[1]),
  }
  await using captured = await startCapture(bus, { clearPorts: [ports.http] })
  const { capture, calls, stop } = captured
  // All processes of the machine are looked at, those of other tests too.
  const ours = new Set(Object.values(ports))
  const served = () => calls.filter(({ side, localPort }) => side === Side.SERVER && ours.has(localPort))
  await eventually(() => capture.targets.some(({ path }) => THIS_NODE.test(path)), { what: 'Node itself is probed' })
  for (const scheme of ['https', 'http'] as const) {
    await using client = await startProcess(process.execPath, [
      '-e',
      LOGGED.client,
      scheme,
      String(ports[scheme]),
      String(CALLS),
    ])
    assert.equal(await client.exited, 0)
  }
  await using client = await startProcess(process.execPath, ['-e', LOGGED.h2Client, String(ports.h2), String(CALLS)])
  assert.equal(await client.exited, 0)
  await eventually(() => served().length >= 3 * CALLS, { what: 'all calls are told' })
  await stop()
  assert.equal(capture.fault(), undefined)

  const logged = server.lines.filter((line) => line.startsWith('call ')).sort()
  const told = served().map(({ method, path, status, requestBytes, responseBytes, peerPort, grpcStatus }) => {
    const line = `call ${method} ${path} ${status} ${requestBytes} ${responseBytes} ${peerPort}`
    return grpcStatus === undefined ? line : `${line} ${grpcStatus}`
  })
  assert.equal(logged.length, 3 * CALLS)
  assert.deepEqual(told.sort(), logged)
  for (const call of served()) {
    const [, scheme = ''] = OURS.exec(call.path) ?? []
    const [port, source, protocol] = TOLD[scheme as keyof typeof TOLD](ports)
    assert.deepEqual([call.localPort, call.source, call.protocol], [port, source, protocol])
    assert.deepEqual(call.credentials, ['bearer'])
    assert.notEqual(call.binding, Binding.NONE)
    assert.equal(call.owner?.processId, server.pid)
  }
  const asked = calls.filter(({ side, peerPort }) => side === Side.CLIENT && ours.has(peerPort))
  assert.equal(asked.length, 3 * CALLS)
})

/** Answers at both addresses of this machine, and asks itself at both, at the one that nobody shall look at first. */
const BOTH = `const server = require('node:http').createServer((request, response) => response.end('yes'))
server.listen(0, '::', async () => {
  const { port } = server.address()
  console.log('port', port)
  process.once('SIGUSR2', async () => {
    for (const [host, path] of [['[::1]', '/outside'], ['127.0.0.1', '/inside']]) await (await fetch('http://' + host + ':' + port + path)).text()
  })
})`

test('calls of connections outside of the configured ranges are looked at by nobody', { skip }, async () => {
  await using nats = await startNatsServer()
  await using bus = await decidingBus(nats.url)
  await using both = await startProcess(process.execPath, ['-e', BOTH])
  const port = Number((await both.line(/^port \d+/)).split(' ')[1])
  const ranges = ['127.0.0.0/8'].map(parseRange).filter((range) => range !== undefined)
  await using captured = await startCapture(bus, { clearPorts: [port] }, { ranges })
  const { capture, metrics } = captured
  const paths = () =>
    captured.calls.filter(({ localPort, peerPort }) => [localPort, peerPort].includes(port)).map(({ path }) => path)
  await eventually(() => capture.targets.length > 0, { what: 'capturing has begun' })
  process.kill(both.pid, 'SIGUSR2')
  await eventually(() => paths().length === 2, { what: 'both ends of the call inside are told' })
  assert.deepEqual(paths(), ['/inside', '/inside'])
  const elsewhere = await metrics.callsElsewhere.get()
  assert.ok((elsewhere.values[0]?.value ?? 0) > 0)
})
