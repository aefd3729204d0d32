import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseRange } from '@tollward/contracts'
import { Binding, Side } from '@tollward/contracts/sensor'
import { eventually, requires, startNatsServer, startProcess, temporaryDirectory } from '@tollward/testkit'
import { makeCertificate, needsProbes } from '../test-calls.ts'
import { startCapture } from '../test-capture.ts'
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
const h2 = require('node:http2').createSecureServer(options)
h2.on('stream', (stream, headers) => {
  const { remotePort } = stream.session.socket
  let asked = 0
  stream.on('data', (bytes) => { asked += bytes.length }).on('end', () => {
    const [, status, size] = /status=(\\d+)&size=(\\d+)/.exec(headers[':path'])
    stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true })
    stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': String(status % 16) }))
    stream.on('close', () => console.log('call', headers[':method'], headers[':path'].split('?')[0], 200, asked, size, remotePort, status % 16))
    stream.end(Buffer.alloc(Number(size), 'x'))
  })
})
h2.listen(0, '127.0.0.1', () => console.log('h2', h2.address().port))
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

/** Makes so many calls of gRPC's form over one connection, some at once: together they fit into what is seen of one write. */
const H2_CLIENT = `const [, port, count] = process.argv
const session = require('node:http2').connect('https://127.0.0.1:' + port, { rejectUnauthorized: false })
const call = (number) => new Promise((resolve) => {
  const path = '/shop.Orders/' + number + '?status=' + number + '&size=' + (number * 37) % 3000
  const stream = session.request({ ':method': 'POST', ':path': path, 'content-type': 'application/grpc+proto', authorization: 'Bearer secret-' + number })
  stream.end(Buffer.alloc((number * 13) % 3000, 'y'))
  stream.resume().on('close', resolve)
})
const some = async (from) => { for (let number = from; number < Number(count); number += 4) await call(number) }
Promise.all([0, 1, 2, 3].map(some)).then(() => session.close())`

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
    h2: Number((await server.line(/^h2 \d+/)).split(' ')[1]),
  }
  await using captured = await startCapture(bus, { clearPorts: [ports.http] })
  const { capture, calls, stop } = captured
  const served = () => calls.filter(({ side, path }) => side === Side.SERVER && OURS.test(path))
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
  await using client = await startProcess(process.execPath, ['-e', H2_CLIENT, String(ports.h2), String(CALLS)])
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
  const asked = calls.filter(({ side, path }) => side === Side.CLIENT && OURS.test(path))
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
