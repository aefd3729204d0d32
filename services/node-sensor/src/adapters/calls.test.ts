import assert from 'node:assert/strict'
import { test } from 'node:test'
import { contract } from '@tollward/contracts'
import { Binding, CallCapturedSchema, type CapturedCall, Side } from '@tollward/contracts/sensor'
import { eventually, requires, startNatsServer, startProcess, temporaryDirectory } from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { sensorMetrics } from '../metrics.ts'
import { makeCertificate, needsProbes } from '../test-calls.ts'
import { decidingBus } from '../test-node.ts'
import { Outbox } from './batch-publisher.ts'
import { CallCapture } from './calls.ts'

const skip = needsProbes || (await requires({ root: true, tools: ['nats-server'] }))
const CALLS = 200
const SETTINGS = {
  ...{ payloadBytesMax: 4096, cgroupBytesPerSecond: 0, cgroupBurstBytes: 0, sampleOneIn: 1 },
  ringBytes: 4 * 1024 * 1024,
}

/** Answers over TLS and in the clear with so many bytes as are asked for, in chunks or not, and logs each call as it saw it. */
const SERVER = `const [, key, cert] = process.argv
const { readFileSync } = require('node:fs')
const options = { key: readFileSync(key), cert: readFileSync(cert) }
const answer = (request, response) => {
  let asked = 0
  request.on('data', (bytes) => { asked += bytes.length }).on('end', () => {
    const [, status, size] = /status=(\\d+)&size=(\\d+)/.exec(request.url)
    const body = Buffer.alloc(Number(size), 'x')
    if (request.method === 'PUT') response.setHeader('Content-Length', size)
    response.writeHead(Number(status))
    if (status !== '204') response.write(body.subarray(0, body.length / 2))
    response.end(status === '204' ? undefined : body.subarray(body.length / 2), () =>
      console.log('call', request.method, request.url.split('?')[0], status, asked, status === '204' ? 0 : size, request.socket.remotePort))
  })
}
for (const [name, server] of [['tls', require('node:https').createServer(options, answer)], ['clear', require('node:http').createServer(answer)]])
  server.listen(0, '127.0.0.1', () => console.log(name, server.address().port))`

/** Makes so many calls over some connections that stay open. */
const CLIENT = `const [, scheme, port, count] = process.argv
const web = require('node:' + scheme)
const agent = new web.Agent({ keepAlive: true, maxSockets: 5 })
const call = (number) => new Promise((resolve) => {
  const method = number % 3 === 0 ? 'POST' : 'PUT'
  const status = number % 7 === 0 ? 204 : number % 11 === 0 ? 500 : 200
  const path = '/' + scheme + '/' + number + '?status=' + status + '&size=' + (number * 37) % 20000
  const request = web.request({ port, host: '127.0.0.1', method, path, agent, rejectUnauthorized: false }, (response) => response.resume().on('end', resolve))
  request.setHeader('Authorization', 'Bearer secret-' + number)
  request.end(Buffer.alloc((number * 13) % 9000, 'y'))
})
Promise.all(Array.from({ length: Number(count) }, (_, number) => call(number))).then(() => process.exit())`

test('calls of real servers, inside TLS and in the clear, are told as the servers log them, each with its connection', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  await using nats = await startNatsServer()
  await using bus = await decidingBus(nats.url)
  const { key, cert } = await makeCertificate(directory.path)
  await using server = await startProcess(process.execPath, ['-e', SERVER, key, cert])
  const ports = {
    https: Number((await server.line(/^tls \d+/)).split(' ')[1]),
    http: Number((await server.line(/^clear \d+/)).split(' ')[1]),
  }
  const nothing = () => ({})
  const metrics = sensorMetrics(new Registry(), { verdicts: nothing, events: nothing, blocks: nothing })
  const log = pino({ level: 'silent' })
  const outbox = new Outbox({ log })
  const settings = { ...SETTINGS, clearPorts: [ports.http] }
  const capture = new CallCapture({ settings, node: 'here', outbox, metrics, log })
  const end = new AbortController()
  const running = [capture.run(end.signal), outbox.run(bus, end.signal)]
  const calls: CapturedCall[] = []
  const served = () => calls.filter(({ side, path }) => side === Side.SERVER && /^\/https?\//.test(path))
  await using _following = await bus.follow(contract(CallCapturedSchema), 'beginning', (batch) => {
    assert.equal(batch.node, 'here')
    calls.push(...batch.calls)
  })
  await eventually(() => capture.targets.some(({ source }) => source === 'node'), { what: 'Node itself is probed' })
  for (const scheme of ['https', 'http'] as const) {
    await using client = await startProcess(process.execPath, [
      '-e',
      CLIENT,
      scheme,
      String(ports[scheme]),
      String(CALLS),
    ])
    assert.equal(await client.exited, 0)
  }
  await eventually(() => served().length >= 2 * CALLS, { what: 'all calls are told' })
  end.abort()
  await Promise.all(running)
  assert.equal(capture.fault(), undefined)

  const logged = server.lines.filter((line) => line.startsWith('call ')).sort()
  const told = served().map(
    ({ method, path, status, requestBytes, responseBytes, peerPort }) =>
      `call ${method} ${path} ${status} ${requestBytes} ${responseBytes} ${peerPort}`,
  )
  assert.equal(logged.length, 2 * CALLS)
  assert.deepEqual(told.sort(), logged)
  for (const call of served()) {
    const isTls = call.path.startsWith('/https/')
    assert.deepEqual([call.localPort, call.source], isTls ? [ports.https, 'node'] : [ports.http, 'clear'])
    assert.deepEqual(call.credentials, ['bearer'])
    assert.notEqual(call.binding, Binding.NONE)
    assert.equal(call.owner?.processId, server.pid)
  }
  const asked = calls.filter(({ side, path }) => side === Side.CLIENT && /^\/https?\//.test(path))
  assert.equal(asked.length, 2 * CALLS)
})
