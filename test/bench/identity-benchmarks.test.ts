import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { test } from 'node:test'
import { requires } from '@tollward/testkit'
import { GLANCE } from './contest.ts'
import { load, sendAll } from './http-load.ts'
import { run as introspection } from './introspection.bench.ts'
import { run as revocation } from './revocation.bench.ts'
import { run as token } from './token.bench.ts'

const skip = await requires({ tools: ['nats-server', 'taskset'] })

const REQUEST = Buffer.from('GET / HTTP/1.1\r\nhost: x\r\n\r\n')

test('the generator of load takes only the answer that counts, and every answer once', async (context) => {
  let answered = 0
  const server = createServer((_request, response) => {
    answered += 1
    response.end(answered > 50 ? 'another' : 'right')
  })
  context.after(() => {
    server.closeAllConnections()
    server.close()
  })
  server.listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const { port } = server.address() as AddressInfo
  const target = { port, next: () => REQUEST, accepts: (answer: Buffer) => answer.includes('right') }
  const seen: string[] = []
  await sendAll(target, 4, 50, (answer) => seen.push(answer.toString()))
  assert.equal(seen.length, 50)
  assert.equal(answered, 50)
  await assert.rejects(load(target, 4, 1000), /should not come[\s\S]*another/)
})

test('the benchmark of introspection gets right answers from each of its servers', { skip }, async () => {
  const { rows } = await introspection(GLANCE)
  assert.equal(rows.length, 3)
  for (const { what, perSecond } of rows) assert.ok(perSecond > 0, what)
})

test('the benchmark of tokens gets tokens from each of its servers', { skip }, async () => {
  const { rows } = await token(GLANCE)
  assert.equal(rows.length, 3)
  for (const { what, perSecond } of rows) assert.ok(perSecond > 0, what)
})

test('the benchmark of revocations sees each of them refused at gateway and authorizer, and nobody else', {
  skip,
}, async () => {
  const { rows } = await revocation({ token: 2, client: 1, grant: 1, subject: 1 })
  const counts = Object.fromEntries(rows.map(({ what, count }) => [what, count]))
  assert.equal(counts['sent → refused by the gateway'], 5)
  assert.equal(counts['sent → refused by the authorizer'], 5)
  assert.ok(Number(counts['requests of other clients, all admitted']) > 0)
})
