import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { after, before, describe, test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Bucket } from '@tollward/bus'
import { bucketContract, type CallerName, callerKey, formatAddress, parseAddress, rangeKey } from '@tollward/contracts'
import { type Block, BlockSchema } from '@tollward/contracts/enforcement'
import { createLog } from '@tollward/runtime'
import { eventually, requires } from '@tollward/testkit'
import { Registry } from 'prom-client'
import { createDecider, type Decider, type DeciderOptions } from './decider.ts'
import { connectTestBus, EXAMPLE_DOCUMENTS, type Neighbours, startNeighbours } from './testing.ts'

const skip = await requires({ tools: ['nats-server'] })

/** Enough that reading them is told about several times. */
const MANY = 20_000
const WRITTEN_AT_ONCE = 500
const GRANT = 'ab'.repeat(32)

describe('blocks', { skip }, () => {
  let neighbours: Neighbours
  let decider: Decider
  let resources: AsyncDisposableStack

  before(async () => {
    resources = new AsyncDisposableStack()
    neighbours = resources.use(await startNeighbours())
    await neighbours.apply(EXAMPLE_DOCUMENTS)
    decider = resources.use(await newDecider(resources))
  })
  after(() => resources.disposeAsync())

  async function newDecider(stack: AsyncDisposableStack, options: Partial<DeciderOptions> = {}): Promise<Decider> {
    const bus = stack.use(await connectTestBus(neighbours.nats.url, 'gateway'))
    const config = { source: 'gateway', paymentUrl: 'http://pay.example', guardedAddresses: [] } as const
    const log = createLog('gateway', 'silent')
    return createDecider({ bus, log, registry: new Registry(), config, ...options })
  }

  async function reason(asked: { from?: string; token?: string | undefined }, by = decider): Promise<string> {
    const address = parseAddress(asked.from ?? '198.51.100.7')
    assert.ok(address)
    const decision = await by.decide({
      method: 'GET',
      scheme: 'https',
      host: 'api.example',
      target: asked.token === undefined ? '/public' : '/echo',
      address,
      headers: asked.token === undefined ? [] : ['authorization', `Bearer ${asked.token}`],
    })
    return decision.admitted ? 'admitted' : decision.reason
  }

  test('a blocked token, grant, client or subject is refused, nobody else is, and a lifted one passes again', async () => {
    const issue = (client: string) => neighbours.issue(client, ['orders'], { subject: 'ada', grantHash: GRANT })
    const token = issue('shop')
    const other = neighbours.issue('other', ['orders'], { subject: 'shop', grantHash: '' })
    const names: CallerName[] = [
      { kind: 'token', value: hash('sha256', token, 'hex') },
      { kind: 'grant', value: GRANT },
      { kind: 'client', value: 'shop' },
      { kind: 'subject', value: 'ada' },
    ]
    for (const name of names) {
      assert.equal(await reason({ token }), 'admitted')
      await neighbours.blockCaller(name)
      await eventually(async () => (await reason({ token })) === 'caller-blocked', { what: `${name.kind} is blocked` })
      assert.equal(
        await reason({ token: other }),
        'admitted',
        'a subject of the same name as a client is somebody else',
      )
      assert.equal(await reason({ token: issue('shop') }), name.kind === 'token' ? 'admitted' : 'caller-blocked')
      assert.equal(await reason({}), 'admitted', 'who shows no token is not known')
      await neighbours.liftCaller(name)
      await eventually(async () => (await reason({ token })) === 'admitted', { what: `${name.kind} is lifted` })
    }
  })

  test('a block of a caller is known to whoever starts later, and ends by itself', async () => {
    const token = neighbours.issue('late', ['orders'])
    await neighbours.blockCaller({ kind: 'client', value: 'late' }, 2500)
    await using stack = new AsyncDisposableStack()
    const later = stack.use(await newDecider(stack))
    assert.equal(await reason({ token }, later), 'caller-blocked')
    await eventually(async () => (await reason({ token }, later)) === 'admitted', { what: 'its end' })
  })

  test('a value that does not fit its key blocks nobody', async () => {
    const bucket: Bucket<Block> = neighbours.bus.bucket(bucketContract(BlockSchema))
    const expiresAt = timestampFromMs(Date.now() + 60_000)
    const [token, marker] = ['odd', 'marker'].map((client) => neighbours.issue(client, ['orders']))
    await bucket.put(callerKey({ kind: 'client', value: 'odd' }), create(BlockSchema, { format: 1, expiresAt }))
    await bucket.put('client.odd', create(BlockSchema, { format: 2, expiresAt }))
    const address = parseAddress('198.51.100.8') ?? new Uint8Array()
    await bucket.put(rangeKey({ address, prefixLength: 128 }), create(BlockSchema, { format: 2, address, expiresAt }))
    await neighbours.blockCaller({ kind: 'client', value: 'marker' })
    await eventually(async () => (await reason({ token: marker })) === 'caller-blocked', { what: 'all were heard' })
    assert.equal(await reason({ token, from: '198.51.100.8' }), 'admitted')
  })

  test('a block of an IPv6 prefix refuses every address in it and none beside', async () => {
    await neighbours.block('2001:db8:1:2::/64')
    await eventually(async () => (await reason({ from: '2001:db8:1:2:aaaa::1' })) === 'blocked', { what: 'the block' })
    assert.equal(await reason({ from: '2001:db8:1:2:ffff:ffff:ffff:ffff' }), 'blocked')
    assert.equal(await reason({ from: '2001:db8:1:3::1' }), 'admitted')
  })

  test('a start with many blocks says how far it is, and decides nothing before it knows all', async () => {
    const bucket = neighbours.bus.bucket(bucketContract(BlockSchema))
    const expiresAtMs = Date.now() + 600_000
    const addressOf = (index: number) =>
      Uint8Array.of(...new Array(10).fill(0), 255, 255, 10, 1, index >> 8, index & 255)
    const write = (index: number) => {
      const range = { address: addressOf(index), prefixLength: 128 }
      const value = create(BlockSchema, { format: 1, ...range, expiresAt: timestampFromMs(expiresAtMs) })
      return bucket.put(rangeKey(range), value, { expiresAtMs })
    }
    for (let first = 0; first < MANY; first += WRITTEN_AT_ONCE)
      await Promise.all(Array.from({ length: WRITTEN_AT_ONCE }, (_, index) => write(first + index)))

    const told: string[] = []
    await using stack = new AsyncDisposableStack()
    const full = stack.use(await newDecider(stack, { onProgress: (how) => void told.push(how) }))
    for (const index of [0, 1, MANY / 2, MANY - 1])
      assert.equal(await reason({ from: formatAddress(addressOf(index)) }, full), 'blocked')
    const steps = told.map((how) => /^(\d+) of (\d+) blocks are read$/.exec(how)?.slice(1).map(Number))
    assert.ok(steps.length >= MANY / 1000, `told ${steps.length} times`)
    for (const [index, step] of steps.entries()) {
      assert.equal(step?.[0], (index + 1) * 1000)
      assert.ok((step?.[1] ?? 0) >= MANY && (step?.[1] ?? 0) < MANY + 100, `of how many: ${told[index]}`)
    }
  })
})
