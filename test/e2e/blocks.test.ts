import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { credentials } from '@grpc/grpc-js'
import { bucketContract, rangeKey, writeCaller } from '@tollward/contracts'
import { AdminService } from '@tollward/contracts/admin'
import { BlockSchema } from '@tollward/contracts/enforcement'
import { Authorization } from '@tollward/contracts/envoy'
import { type GrpcClient, grpcClient } from '@tollward/contracts/grpc'
import { EXAMPLE_DOCUMENTS, type Neighbours, startNeighbours } from '@tollward/decision/testing'
import { eventually, freePort, requires, startProcess, startService } from '@tollward/testkit'
import { ROOT } from '../checks/copy.ts'
import { openFaultyLine } from '../scenario/faulty-line.ts'
import { send } from '../scenario/http.ts'

const skip = await requires({ tools: ['nats-server'] })

const GRANT = 'cd'.repeat(32)

let resources: AsyncDisposableStack
let neighbours: Neighbours
let admin: GrpcClient<typeof AdminService>
/** The status that a client at an address gets, by decision point. */
let points: Record<'authorizer' | 'gateway', (from: string, path: string, token?: string) => Promise<number>>

before(async () => {
  if (skip !== false) return
  resources = new AsyncDisposableStack()
  neighbours = resources.use(await startNeighbours())
  await neighbours.apply(EXAMPLE_DOCUMENTS)
  const api = createServer((_request, response) => response.end('served'))
  await new Promise<void>((resolve) => api.listen(0, '127.0.0.1', resolve))
  resources.defer(() => void api.close())
  const env = async () => ({
    TOLLWARD_NATS_URL: neighbours.nats.url,
    TOLLWARD_HEALTH_PORT: String(await freePort()),
  })
  const [adminPort, grpcPort, gatewayPort] = [await freePort(), await freePort(), await freePort()]
  resources.use(await startService('admin-api', { ...(await env()), TOLLWARD_LISTEN_PORT: String(adminPort) }))
  resources.use(
    await startService('authorizer', {
      ...(await env()),
      TOLLWARD_GRPC_PORT: String(grpcPort),
      TOLLWARD_HTTP_PORT: String(await freePort()),
    }),
  )
  resources.use(
    await startService('gateway', {
      ...(await env()),
      TOLLWARD_HTTP_PORT: String(gatewayPort),
      TOLLWARD_TRUSTED_PROXIES: '127.0.0.1',
      TOLLWARD_UPSTREAM_URL: `http://127.0.0.1:${(api.address() as AddressInfo).port}`,
    }),
  )
  admin = resources.use(grpcClient(AdminService, `127.0.0.1:${adminPort}`, credentials.createInsecure()))
  const check = resources.use(grpcClient(Authorization, `127.0.0.1:${grpcPort}`, credentials.createInsecure()))
  points = {
    authorizer: (from, path, token) => askAuthorizer(check, from, path, token),
    gateway: async (from, path, token) => {
      const bearer = token === undefined ? {} : { authorization: `Bearer ${token}` }
      return (await send(`http://127.0.0.1:${gatewayPort}${path}`, { headers: { 'x-forwarded-for': from, ...bearer } }))
        .status
    },
  }
})
after(() => resources?.disposeAsync())

async function askAuthorizer(check: GrpcClient<typeof Authorization>, from: string, path: string, token?: string) {
  const fields = { ':authority': 'api.example', ':path': path, ':method': 'GET', ':scheme': 'http' }
  const bearer = token === undefined ? {} : { authorization: `Bearer ${token}` }
  const headers = Object.entries({ ...fields, ...bearer }).map(([key, value]) => ({
    key,
    rawValue: Buffer.from(value),
  }))
  const http = { method: 'GET', path, host: 'api.example', scheme: 'http', protocol: 'HTTP/1.1', size: -1n }
  const socketAddress = { address: from, portSpecifier: { case: 'portValue' as const, value: 43_210 } }
  const source = { address: { address: { case: 'socketAddress' as const, value: socketAddress } } }
  const { status, httpResponse } = await check.check({
    attributes: { source, request: { http: { ...http, headerMap: { headers } } } },
  })
  if (status?.code === 0) return 200
  return httpResponse.case === 'deniedResponse' ? (httpResponse.value.status?.code ?? 0) : 0
}

function asOperator() {
  const token = neighbours.issue('operator', ['tollward.admin'], { audience: ['urn:tollward:admin'] })
  return { metadata: { authorization: `Bearer ${token}` } }
}

test('an operator blocks an IPv6 prefix, and every address in it is refused at layer 7, until it is lifted', {
  skip,
}, async () => {
  const [inside, edge, beside] = ['2001:db8::1', '2001:db8::ffff:ffff:ffff:ffff', '2001:db8:0:1::1'] as const
  for (const [point, ask] of Object.entries(points)) {
    assert.equal(await ask(inside, '/public'), 200, point)
    await admin.addBlock({ cidr: '2001:db8::/64', ttlSeconds: 600, reason: 'test' }, asOperator())
    await eventually(async () => (await ask(inside, '/public')) === 403, { what: `it is refused at ${point}` })
    assert.deepEqual([await ask(edge, '/public'), await ask(beside, '/public')], [403, 200], point)
    await admin.removeBlock({ cidr: '2001:db8::/64' }, asOperator())
    await eventually(async () => (await ask(inside, '/public')) === 200, { what: `it passes again at ${point}` })
  }
})

test('an operator blocks a token, a grant, a client or a subject, and its next request is refused', {
  skip,
}, async () => {
  const token = neighbours.issue('shop', ['orders'], { grantHash: GRANT, subject: 'ada' })
  const other = neighbours.issue('other', ['orders'])
  const callers = [
    { kind: 'token', value: createHash('sha256').update(token).digest('hex') },
    { kind: 'grant', value: GRANT },
    { kind: 'client', value: 'shop' },
    { kind: 'subject', value: 'ada' },
  ] as const
  for (const [point, ask] of Object.entries(points)) {
    for (const caller of callers) {
      const what = `${caller.kind} at ${point}`
      assert.equal(await ask('192.0.2.1', '/echo', token), 200, what)
      await admin.addBlock({ caller: writeCaller(caller), ttlSeconds: 600, reason: 'test' }, asOperator())
      await eventually(async () => (await ask('192.0.2.1', '/echo', token)) === 403, { what: `${what} is refused` })
      assert.equal(await ask('192.0.2.1', '/echo', other), 200, what)
      await admin.removeBlock({ caller: writeCaller(caller) }, asOperator())
      await eventually(async () => (await ask('192.0.2.1', '/echo', token)) === 200, { what: `${what} passes again` })
    }
  }
})

/** Enough that reading them is told several times. */
const MANY = 5000
const WRITTEN_AT_ONCE = 500
/** What each question takes longer on the way to NATS: so that what is said on the way can be read. */
const SLOW_MS = 200

test('a start with many blocks says at each decision point how far it is, and nobody is answered before', {
  skip,
}, async () => {
  const bucket = neighbours.bus.bucket(bucketContract(BlockSchema))
  const expiresAtMs = Date.now() + 600_000
  const write = (index: number) => {
    const range = {
      address: Uint8Array.of(...new Array(10).fill(0), 255, 255, 10, 1, index >> 8, index & 255),
      prefixLength: 128,
    }
    const value = create(BlockSchema, { format: 1, ...range, expiresAt: timestampFromMs(expiresAtMs) })
    return bucket.put(rangeKey(range), value, { expiresAtMs })
  }
  for (let first = 0; first < MANY; first += WRITTEN_AT_ONCE)
    await Promise.all(Array.from({ length: WRITTEN_AT_ONCE }, (_, index) => write(first + index)))
  await using line = await openFaultyLine(neighbours.nats.port)
  line.set({ slowMs: SLOW_MS })
  const start = async (name: 'authorizer' | 'gateway') => {
    const [healthPort, httpPort] = [await freePort(), await freePort()]
    await using starting = await startProcess(process.execPath, [join(ROOT, `services/${name}/src/main.ts`)], {
      env: {
        TOLLWARD_NATS_URL: `nats://127.0.0.1:${line.port}`,
        TOLLWARD_HEALTH_PORT: String(healthPort),
        TOLLWARD_HTTP_PORT: String(httpPort),
        ...(name === 'gateway'
          ? { TOLLWARD_UPSTREAM_URL: 'http://127.0.0.1:1' }
          : { TOLLWARD_GRPC_PORT: String(await freePort()) }),
      },
    })
    const told = new Set<string>()
    const isReady = async () => {
      const { status, body } = await send(`http://127.0.0.1:${healthPort}/healthz/ready`)
      const [how] = /\d+ of \d+ blocks are read/.exec(body) ?? []
      if (how === undefined) return status === 200
      told.add(how)
      await assert.rejects(send(`http://127.0.0.1:${httpPort}/public`), { code: 'ECONNREFUSED' })
      return false
    }
    await eventually(isReady, { what: `${name} is ready`, intervalMs: 5, timeoutMs: 30_000 })
    assert.ok(told.size > 0, starting.lines.join('\n'))
    for (const how of told) {
      // The marks of what the tests before lifted are read too.
      const [read, total] = [...how.matchAll(/\d+/g)].map(Number)
      assert.ok(read && total && read % 1000 === 0 && read <= total, how)
      assert.ok(total >= MANY && total < MANY + 100, how)
    }
  }
  await Promise.all([start('authorizer'), start('gateway')])
})
