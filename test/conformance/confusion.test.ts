import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { resolve } from 'node:path'
import { text } from 'node:stream/consumers'
import { after, before, describe, test } from 'node:test'
import {
  CONFUSING,
  CONFUSION_POLICY,
  misleads,
  NEVER_ADMITTED,
  ORDINARY,
  protectedReading,
  startNeighbours,
  type WireRequest,
} from '@tollward/decision/testing'
import { freePort, requires, startEnvoy, startService } from '@tollward/testkit'

const skip = await requires({ tools: ['nats-server', 'envoy'] })
const ENVOY_CONFIG = resolve(import.meta.dirname, '../../deploy/envoy/envoy.yaml')

/** A request as the API got it. */
interface Arrived {
  readonly method: string
  readonly url: string
  readonly headers: readonly string[]
}

/** A proxy that says nothing for so long waits for more of a request that is not whole; of a whole one it may be busy. */
const IDLE_MS = { confusing: 80, ordinary: 10_000 } as const

/** What Envoy refuses although it only looks odd: the shipped configuration says why. */
const REFUSED_BY_ENVOY = new Set(['x_under_score'])

describe('requests that can be read in two ways, as bytes on a connection', { skip }, () => {
  const arrived: Arrived[] = []
  const ports = new Map<string, number>()
  let resources: AsyncDisposableStack

  before(async () => {
    resources = new AsyncDisposableStack()
    const neighbours = resources.use(await startNeighbours())
    await neighbours.apply(CONFUSION_POLICY)
    // As lenient as an API may be: what it should not see must be stopped before it.
    const api = createServer({ insecureHTTPParser: true, requireHostHeader: false }, (request, response) => {
      arrived.push({ method: request.method ?? '', url: request.url ?? '', headers: request.rawHeaders })
      request.resume()
      request.on('end', () => response.end('here'))
    })
    api.listen(0, '127.0.0.1')
    await once(api, 'listening')
    resources.defer(() => {
      api.close()
      api.closeAllConnections()
    })
    const apiPort = (api.address() as AddressInfo).port
    const [grpcPort, httpPort, gatewayPort] = [await freePort(), await freePort(), await freePort()]
    const shared = { TOLLWARD_NATS_URL: neighbours.nats.url }
    const health = async () => ({ TOLLWARD_HEALTH_PORT: String(await freePort()) })
    const gateway = { TOLLWARD_HTTP_PORT: String(gatewayPort), TOLLWARD_UPSTREAM_URL: `http://127.0.0.1:${apiPort}` }
    resources.use(await startService('gateway', { ...shared, ...(await health()), ...gateway }))
    const authorizer = { TOLLWARD_GRPC_PORT: String(grpcPort), TOLLWARD_HTTP_PORT: String(httpPort) }
    resources.use(await startService('authorizer', { ...shared, ...(await health()), ...authorizer }))
    const config = (await readFile(ENVOY_CONFIG, 'utf8'))
      .replace('port_value: 10000', 'port_value: 0')
      .replace('port_value: 8081', `port_value: ${apiPort}`)
      .replace('port_value: 9191', `port_value: ${grpcPort}`)
    const envoy = resources.use(await startEnvoy(config))
    ports.set('gateway', gatewayPort)
    ports.set('Envoy', await envoy.port('api'))
  })
  after(() => resources.disposeAsync())

  /** Sends bytes, and returns all that comes back until the connection ends. */
  async function send(through: string, bytes: Buffer, idleMs: number = IDLE_MS.confusing): Promise<string> {
    const socket = connect(ports.get(through) ?? 0, '127.0.0.1')
    socket.on('error', () => socket.destroy())
    // Half closed at once, some proxies answer nothing; one that waits for more is told that there is none.
    socket.setTimeout(idleMs, () => (socket.writableEnded ? socket.destroy() : socket.end()))
    socket.write(bytes)
    try {
      return await text(socket)
    } catch {
      // Cut off: what a proxy does with what it can't read.
      return ''
    }
  }

  const sendRequest = (
    { method = 'GET', host = 'api.example', target, headers = [] }: WireRequest,
    through: string,
    idleMs?: number,
  ) => {
    const fields = [['host', host], ...headers, ['connection', 'close']]
    const own = headers.some(([name]) => name.toLowerCase() === 'connection')
    const lines = (own ? fields.slice(0, -1) : fields).map(([name, value]) => `${name}: ${value}`)
    const isRaw = /[\u0100-\uffff]/.test(target + host)
    const head = `${method} ${target} HTTP/1.1\r\n${lines.join('\r\n')}\r\n\r\n`
    return send(through, Buffer.from(head, isRaw ? 'utf8' : 'latin1'), idleMs)
  }

  /** What of a request that arrived must not have. */
  function breached({ url, headers }: Arrived): string | undefined {
    const value = (wanted: string) =>
      headers[headers.findIndex((field, index) => index % 2 === 0 && field.toLowerCase() === wanted) + 1]
    const misleading = headers.find(
      (name, index) => index % 2 === 0 && misleads(name) && name.toLowerCase() !== 'x-tollward-decision',
    )
    if (misleading !== undefined) return misleading
    if (value('x-tollward-decision') === 'mine') return 'a decision that a client made up'
    if (!/^api\.example/i.test(value('host') ?? ''))
      return /api\.example/i.test(value('host') ?? '') ? value('host') : undefined
    return protectedReading(url.split('?')[0] ?? '')
  }

  for (const through of ['gateway', 'Envoy']) {
    for (const [name, requests] of Object.entries(CONFUSING)) {
      test(`${through}: ${name}: nothing that is protected is reached`, async () => {
        for (const request of requests) {
          arrived.length = 0
          const answer = await sendRequest(request, through)
          const shown = `${JSON.stringify(request)} → ${JSON.stringify(arrived)} ${answer.slice(0, 200)}`
          assert.deepEqual(
            arrived.map(breached).filter((found) => found !== undefined),
            [],
            shown,
          )
          if (NEVER_ADMITTED.has(name)) assert.deepEqual(arrived, [], shown)
        }
      })
    }

    test(`${through}: what only looks odd arrives`, async () => {
      for (const request of ORDINARY) {
        const [field] = request.headers ?? []
        if (through === 'Envoy' && field && REFUSED_BY_ENVOY.has(field[0])) continue
        arrived.length = 0
        const answer = await sendRequest(request, through, IDLE_MS.ordinary)
        assert.match(answer, /^HTTP\/1\.1 200 /, `${JSON.stringify(request)} ${answer}`)
        assert.equal(arrived.length, 1)
      }
    })

    test(`${through}: no second request is smuggled behind the first`, async () => {
      for (const [name, bytes] of Object.entries(SMUGGLED)) {
        arrived.length = 0
        const answer = await send(through, Buffer.from(bytes + LAST, 'latin1'))
        assert.deepEqual(
          arrived.filter(({ url }) => url.startsWith('/admin')),
          [],
          `${name} ${answer}`,
        )
      }
    })
  }
})

/** Whoever has read all the rest ends the connection after this. */
const LAST = 'GET /public HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n\r\n'
const post = (fields: string, body: string) => `POST /items HTTP/1.1\r\nHost: api.example\r\n${fields}\r\n\r\n${body}`
const INNER = 'GET /admin/smuggled HTTP/1.1\r\nHost: api.example\r\nX-Tollward-Client: admin\r\n\r\n'
const CHUNKED = `0\r\n\r\n${INNER}`
const LENGTH = INNER.length

/** Requests whose end two servers see in two places (RFC 9112, 11.2). The one inside would be protected, and is judged if it is seen. */
const SMUGGLED: Readonly<Record<string, string>> = {
  'length and chunked': post(`Content-Length: ${CHUNKED.length}\r\nTransfer-Encoding: chunked`, CHUNKED),
  'chunked and length': post(`Transfer-Encoding: chunked\r\nContent-Length: ${CHUNKED.length}`, CHUNKED),
  'length short of chunked': post(
    'Content-Length: 4\r\nTransfer-Encoding: chunked',
    `${LENGTH.toString(16)}\r\n${INNER}\r\n0\r\n\r\n`,
  ),
  'two lengths': post(`Content-Length: 0\r\nContent-Length: ${LENGTH}`, INNER),
  'two lengths in one': post(`Content-Length: 0, ${LENGTH}`, INNER),
  'length with a sign': post(`Content-Length: +${LENGTH}`, INNER),
  'length in hexadecimal': post(`Content-Length: 0x${LENGTH.toString(16)}`, INNER),
  'length that is negative': post('Content-Length: -1', INNER),
  'length with a space before the colon': post(`Content-Length : ${LENGTH}`, INNER),
  'length behind a tab': post(`Content-Length:\t${LENGTH}`, INNER),
  'length that is not a number': post(`Content-Length: ${LENGTH}a`, INNER),
  'length with a NUL': post(`Content-Length: ${LENGTH}\0`, INNER),
  'chunked with a space before the colon': post(
    `Transfer-Encoding : chunked\r\nContent-Length: ${CHUNKED.length}`,
    CHUNKED,
  ),
  'chunked folded': post(`Transfer-Encoding:\r\n chunked\r\nContent-Length: ${CHUNKED.length}`, CHUNKED),
  'chunked with a vertical tab': post(`Transfer-Encoding: \x0bchunked\r\nContent-Length: ${CHUNKED.length}`, CHUNKED),
  'chunked in quotes': post(`Transfer-Encoding: "chunked"\r\nContent-Length: ${CHUNKED.length}`, CHUNKED),
  'chunked misspelt': post(`Transfer-Encoding: xchunked\r\nContent-Length: ${CHUNKED.length}`, CHUNKED),
  'chunked before identity': post(`Transfer-Encoding: chunked, identity\r\nContent-Length: ${CHUNKED.length}`, CHUNKED),
  'chunked twice': post(`Transfer-Encoding: chunked\r\nTransfer-Encoding: cow`, CHUNKED),
  'chunked in HTTP/1.0': `POST /items HTTP/1.0\r\nHost: api.example\r\nTransfer-Encoding: chunked\r\nContent-Length: ${CHUNKED.length}\r\n\r\n${CHUNKED}`,
  'a chunk with a length of many digits': post('Transfer-Encoding: chunked', `00000000000000000000\r\n\r\n${INNER}`),
  'a chunk with a bare line feed in its extension': post(
    'Transfer-Encoding: chunked',
    `2;\nxx\r\n4\r\nabcd\r\n${CHUNKED}`,
  ),
  'a chunk that overflows': post('Transfer-Encoding: chunked', `10000000000000000\r\n${INNER}`),
  'a chunk whose length has a sign': post('Transfer-Encoding: chunked', `-1\r\n${INNER}`),
  'bare line feeds': `POST /items HTTP/1.1\nHost: api.example\nContent-Length: ${LENGTH}\n\n${INNER}`,
  'bare carriage returns': post(`X: a\rTransfer-Encoding: chunked\r\nContent-Length: ${CHUNKED.length}`, CHUNKED),
  'a header without a colon': post(`Transfer-Encoding chunked\r\nContent-Length: ${CHUNKED.length}`, CHUNKED),
  'a header that is empty': post(`: x\r\nContent-Length: ${LENGTH}`, INNER),
  'a body of GET': `GET /public HTTP/1.1\r\nHost: api.example\r\nContent-Length: ${LENGTH}\r\n\r\n${INNER}`,
  'a body of GET in chunks': `GET /public HTTP/1.1\r\nHost: api.example\r\nTransfer-Encoding: chunked\r\n\r\n${LENGTH.toString(16)}\r\n${INNER}\r\n0\r\n\r\n`,
  'a body that nobody waits for': post(`Expect: 100-continue\r\nContent-Length: ${LENGTH}`, INNER),
  'an upgrade to cleartext HTTP/2': `GET /public HTTP/1.1\r\nHost: api.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n${INNER}`,
  'an upgrade to a WebSocket that is none': `GET /public HTTP/1.1\r\nHost: api.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\nSec-WebSocket-Key: x\r\n\r\n${INNER}`,
  'a tunnel': `CONNECT api.example:80 HTTP/1.1\r\nHost: api.example\r\n\r\n${INNER}`,
  'HTTP/0.9': `GET /public\r\n\r\n${INNER}`,
  'a version that is none': `GET /admin/smuggled HTTP/1.7\r\nHost: api.example\r\n\r\n`,
  'a space in the version': `GET /admin/smuggled  HTTP/1.1\r\nHost: api.example\r\n\r\n`,
  'a trailer that is a header': post(
    'Transfer-Encoding: chunked\r\nTrailer: X-Tollward-Client',
    `0\r\nX-Tollward-Client: admin\r\n\r\n${INNER}`,
  ),
  'pipelined behind one that is open': `GET /public HTTP/1.1\r\nHost: api.example\r\n\r\n${INNER}`,
}
