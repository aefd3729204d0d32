import assert from 'node:assert/strict'
import { Readable } from 'node:stream'
import { after, before, test } from 'node:test'
import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { contract } from '@tollward/contracts'
import { CallCapturedSchema, type CapturedCallSchema, Side } from '@tollward/contracts/sensor'
import { eventually, requires } from '@tollward/testkit'
import { runCommand } from '../program.ts'
import { startTestStack, type TestStack } from '../test-stack.ts'

const skip = await requires({ tools: ['nats-server'] })
let stack: TestStack

before(async () => {
  if (skip === false) stack = await startTestStack()
})
after(async () => {
  await stack?.[Symbol.asyncDispose]()
})

async function tollward(argv: string[], signal = new AbortController().signal, onOut?: (out: string) => void) {
  const run = { code: -1, out: '', err: '' }
  run.code = await runCommand(argv, {
    out: (text) => {
      run.out += text
      onOut?.(run.out)
    },
    err: (text) => {
      run.err += text
    },
    stdin: Readable.from(['']),
    operatorFile: stack.operatorFile,
    signal,
  })
  return run
}

async function captured(...calls: MessageInitShape<typeof CapturedCallSchema>[]): Promise<void> {
  const defaults = { host: 'shop.example', method: 'GET', status: 200, side: Side.SERVER, beganAt: timestampFromMs(0) }
  const batch = create(CallCapturedSchema, {
    ...{ node: 'n1', session: 's', sequence: 1n, lost: 2n },
    calls: calls.map((call) => ({ ...defaults, ...call })),
  })
  await stack.bus.publish(contract(CallCapturedSchema), batch, { key: 'n1' })
}

test('endpoints that sensors told of are listed: how often, with which answers, credentials and kinds of data', {
  skip,
}, async () => {
  assert.equal((await tollward(['apis'])).out, 'no sensor has told of a call yet\n')
  await captured(
    { path: '/orders/1', credentials: ['bearer'], sensitive: ['email'] },
    { path: '/orders/2\u001b[2J', method: 'POST', status: 401, side: Side.CLIENT },
    { path: '/orders/3', status: 500 },
    { path: '/nothing', status: 404 },
  )
  const list = () => tollward(['apis', '-o', 'json'])
  const rows = await eventually(async () => JSON.parse((await list()).out).length === 2 && (await list()), {
    what: 'both endpoints are listed',
  })
  const [, read] = JSON.parse(rows.out)
  assert.deepEqual(
    [
      read.host,
      read.method,
      read.path,
      read.side,
      read.calls,
      read.statuses['2xx'],
      read.statuses['5xx'],
      read.anonymous,
    ],
    ['shop.example', 'GET', '/orders/{int}', 'served', 2, 1, 1, 1],
  )
  assert.match(rows.err, /1 calls belong to no endpoint/)
  assert.match(rows.err, /left out 2 calls/)
  const { out } = await tollward(['apis'])
  assert.match(out, /^HOST +METHOD +PATH +SIDE +CALLS +STATUSES +CREDENTIALS +SENSITIVE +LAST SEEN AT\n/)
  assert.match(out, /\nshop\.example +GET +\/orders\/\{int\} +served +2 +2xx 1 5xx 1 +bearer none 1 +email /)
  assert.match(out, /POST +\/orders\/2 \[2J +asked/)
  assert.equal((await tollward(['apis', '--host', 'Other.example'])).out, 'no sensor has told of a call yet\n')
  assert.match((await tollward(['apis', '--host', 'Shop.Example'])).out, /orders/)
})

test('followed, endpoints come as they are called, until Ctrl-C', { skip }, async () => {
  const end = new AbortController()
  const running = tollward(['apis', '-f', '-o', 'json', '--host', 'live.example'], end.signal, (out) => {
    if (out.includes('\n')) end.abort()
  })
  await eventually(
    async () => {
      await captured({ path: '/live/1', host: 'live.example' }, { path: '/else', host: 'else.example' })
      return end.signal.aborted
    },
    { what: 'an endpoint was told' },
  )
  const row = JSON.parse((await running).out.split('\n')[0] ?? '')
  assert.deepEqual([row.host, row.path], ['live.example', '/live/{int}'])
})
