import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { after, before, describe, test } from 'node:test'
import { contract, parseAddress } from '@tollward/contracts'
import { RedeemOutcome } from '@tollward/contracts/payment'
import { type CallObserved, CallObservedSchema, Outcome } from '@tollward/contracts/sensor'
import { createLog } from '@tollward/runtime'
import { eventually, requires } from '@tollward/testkit'
import { Registry } from 'prom-client'
import { createDecider, type Decider } from './decider.ts'
import type { Decision } from './domain/answer.ts'
import { connectTestBus, EXAMPLE_DOCUMENTS, type Neighbours, newProofKey, startNeighbours } from './testing.ts'

const skip = await requires({ tools: ['nats-server'] })
const TXID = 'ab'.repeat(32)

const MARKER = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: marker }
spec: { hosts: [marker.example], rules: [{ name: marker, match: { path: /marker }, anonymous: true }] }
`

const TRIAL = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: trial }
spec:
  hosts: [trial.example]
  mode: observe
  rules: [{ name: echo, match: { path: /echo }, require: { token: { scopes: [orders] } } }]
`

const LIMITED = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: limited }
spec:
  hosts: [limited.example]
  rules:
    - name: client
      match: { path: /by-client }
      require: { token: { scopes: [orders] } }
      limit: { requests: 1, perSeconds: 60, by: client }
    - name: source
      match: { path: /by-source }
      require: { token: { scopes: [orders] } }
      limit: { requests: 1, perSeconds: 60, by: source }
`

interface Ask {
  host?: string
  path?: string
  method?: string
  token?: string
  /** Instead of token: a whole Authorization. */
  authorization?: string
  txid?: string
  from?: string
  headers?: string[]
  certificate?: () => Uint8Array
}

describe('decider', { skip }, () => {
  let neighbours: Neighbours
  let decider: Decider
  let resources: AsyncDisposableStack
  const registry = new Registry()

  before(async () => {
    resources = new AsyncDisposableStack()
    neighbours = resources.use(await startNeighbours())
    await neighbours.apply(EXAMPLE_DOCUMENTS)
    decider = resources.use(await newDecider(resources, registry))
  })
  after(() => resources.disposeAsync())

  async function newDecider(stack: AsyncDisposableStack, registry = new Registry()): Promise<Decider> {
    const bus = stack.use(await connectTestBus(neighbours.nats.url, 'gateway'))
    const config = { source: 'gateway', paymentUrl: 'http://pay.example', guardedAddresses: [] } as const
    return createDecider({ bus, log: createLog('gateway', 'silent'), registry, config })
  }

  async function ask(asked: Ask, by: Decider = decider): Promise<Decision> {
    return by.decide(facts(asked))
  }

  async function recordsLost(): Promise<number> {
    const records = await registry.getSingleMetric('tollward_decision_records_total')?.get()
    return records?.values.find(({ labels }) => labels.result === 'lost')?.value ?? 0
  }

  async function reason(asked: Ask): Promise<string> {
    const decision = await ask(asked)
    return decision.admitted ? 'admitted' : decision.reason
  }

  test('a token that a revocation names is refused at once, also while its introspection is under way', async () => {
    const token = neighbours.issue('revoked-client', ['orders'])
    assert.equal(await reason({ path: '/echo', token }), 'admitted')
    await neighbours.revoke(token)
    await eventually(async () => (await reason({ path: '/echo', token })) === 'token-invalid', {
      what: 'token is refused',
    })

    const second = neighbours.issue('revoked-client', ['orders'])
    const { promise: held, resolve: release } = Promise.withResolvers<void>()
    neighbours.beforeIntrospection = () => held
    const deciding = ask({ path: '/echo', token: second })
    await eventually(() => neighbours.asked.introspect.includes(second), { what: 'introspection has begun' })
    await neighbours.revoke(second)
    // The decider has heard it when a later revocation shows.
    const later = neighbours.issue('other-client', ['orders'])
    neighbours.beforeIntrospection = async () => {}
    assert.equal(await reason({ path: '/echo', token: later }), 'admitted')
    await neighbours.revoke(later)
    await eventually(async () => (await reason({ path: '/echo', token: later })) === 'token-invalid', {
      what: 'later one is heard',
    })
    release()
    const decision = await deciding
    assert.equal(!decision.admitted && decision.reason, 'token-invalid')
  })

  test('the tokens of a revoked client are refused, and one issued afterwards is not', async () => {
    const token = neighbours.issue('disabled-client', ['orders'])
    assert.equal(await reason({ path: '/echo', token }), 'admitted')
    const asked = () => neighbours.asked.introspect.filter((other) => other === token).length
    const before = asked()
    await neighbours.revokeClient('disabled-client')
    await eventually(async () => (await reason({ path: '/echo', token })) === 'token-invalid', {
      what: 'token is refused',
    })
    assert.equal(asked(), before, 'without asking anybody')
    assert.equal(await reason({ path: '/echo', token: neighbours.issue('disabled-client', ['orders']) }), 'admitted')
  })

  test('the tokens of a revoked grant and of a person who was shut out are refused at once, and no others', async () => {
    const granted = (grantHash: string, subject: string) =>
      neighbours.issue('granted-client', ['orders'], { grantHash, subject })
    const [ofGrant, ofPerson, other] = [granted('g1', 'p1'), granted('g2', 'p2'), granted('g3', 'p3')]
    for (const token of [ofGrant, ofPerson, other]) assert.equal(await reason({ path: '/echo', token }), 'admitted')
    const asked = () => neighbours.asked.introspect.filter((token) => token === other).length
    const before = asked()
    await neighbours.revokeGrant('g1')
    await neighbours.revokeSubject('p2')
    for (const token of [ofGrant, ofPerson]) {
      await eventually(async () => (await reason({ path: '/echo', token })) === 'token-invalid', {
        what: 'it is refused',
      })
    }
    assert.equal(await reason({ path: '/echo', token: other }), 'admitted')
    assert.equal(asked(), before, 'what it does not concern stays known')
    assert.equal(await reason({ path: '/echo', token: granted('g4', 'p2') }), 'admitted', 'a later grant of the person')
  })

  test('a token under a revoked grant is refused, whatever the introspector says', async () => {
    await neighbours.revokeGrant('g9')
    const marker = neighbours.issue('marker-client', ['orders'])
    assert.equal(await reason({ path: '/echo', token: marker }), 'admitted')
    await neighbours.revoke(marker)
    await eventually(async () => (await reason({ path: '/echo', token: marker })) === 'token-invalid', {
      what: 'it is heard',
    })
    const late = neighbours.issue('granted-client', ['orders'], { grantHash: 'g9', subject: 'p9' })
    await eventually(async () => (await reason({ path: '/echo', token: late })) === 'token-invalid', {
      what: 'it is refused',
    })
  })

  test('after a change of a client nothing is taken from the introspector’s memory, which may be older', async () => {
    const token = neighbours.issue('changing-client', ['orders'])
    assert.equal(await reason({ path: '/echo', token }), 'admitted')
    // The introspector has not heard of the change yet: only past its memory it says what is true.
    const unseen = neighbours.issue('changing-client', ['orders'])
    for (const each of [token, unseen]) {
      neighbours.remembered.set(each, neighbours.tokens.get(each) ?? {})
      neighbours.tokens.set(each, { ...neighbours.tokens.get(each), scopes: [] })
    }
    await neighbours.changeClient('changing-client')
    await eventually(async () => (await reason({ path: '/echo', token })) === 'scope-missing', {
      what: 'the scope is gone',
    })
    assert.equal(neighbours.asked.introspect.filter((asked) => asked === token).length, 2, 'at the first attempt')
    assert.equal(await reason({ path: '/echo', token: unseen }), 'scope-missing', 'also of a token that was not known')
    neighbours.remembered.clear()
  })

  describe('proof of possession', () => {
    const URL = 'https://api.example/echo'
    const boundToKey = (client: string, jkt: string) =>
      neighbours.issue(client, ['orders'], { confirmation: { method: { case: 'jkt', value: jkt } } })

    test('a token that is bound to a DPoP key counts once with each proof, and upstream gets neither', async () => {
      const key = await newProofKey()
      const token = boundToKey('dpop-client', key.thumbprint)
      const proof = await key.proof(token, URL)
      const asked = { path: '/echo', authorization: `DPoP ${token}`, headers: ['DPoP', proof] }
      const decision = await ask(asked)
      assert.ok(decision.admitted)
      assert.equal(new Map(decision.upstream.set).get('authorization'), 'Bearer internal.dpop-client.jwt')
      assert.ok(decision.upstream.remove.includes('dpop'))
      const replayed = await ask(asked)
      assert.ok(!replayed.admitted)
      assert.equal(replayed.status, 401)
      assert.match(
        new Map(replayed.headers).get('www-authenticate') ?? '',
        /^DPoP .*error="invalid_dpop_proof", .*algs="ES256 EdDSA"$/,
      )
    })

    test('a bound token without its key is worth nothing, and an unbound one is no DPoP token', async () => {
      const [key, thief] = [await newProofKey(), await newProofKey()]
      const [bound, plain] = [boundToKey('robbed-client', key.thumbprint), neighbours.issue('plain-client', ['orders'])]
      const refusals: [expected: string, asked: Ask][] = [
        ['proof-missing', { token: bound }],
        ['proof-missing', { authorization: `DPoP ${bound}` }],
        ['proof-invalid', { authorization: `DPoP ${bound}`, headers: ['dpop', await thief.proof(bound, URL)] }],
        ['proof-invalid', { authorization: `DPoP ${bound}`, headers: ['dpop', await key.proof(bound, `${URL}x`)] }],
        ['proof-invalid', { authorization: `DPoP ${bound}`, headers: ['dpop', await key.proof(plain, URL)] }],
        ['proof-invalid', { authorization: `DPoP ${bound}`, headers: ['dpop', 'a.b.c', 'dpop', 'a.b.c'] }],
        ['token-invalid', { authorization: `DPoP ${plain}`, headers: ['dpop', await key.proof(plain, URL)] }],
      ]
      for (const [expected, asked] of refusals) {
        const decision = await ask({ path: '/echo', ...asked })
        assert.deepEqual(!decision.admitted && [decision.status, decision.reason], [401, expected])
      }
      assert.equal(await reason({ path: '/echo', token: plain }), 'admitted')
    })

    test('a token that is bound to a certificate counts only on a connection with that certificate', async () => {
      const [own, other] = [Buffer.from('own'), Buffer.from('other')]
      const value = hash('sha256', own, 'base64url')
      const token = neighbours.issue('mtls-client', ['orders'], {
        confirmation: { method: { case: 'x5tS256', value } },
      })
      const asked = { path: '/echo', token }
      assert.equal(await reason({ ...asked, certificate: () => own }), 'admitted')
      assert.equal(await reason({ ...asked, certificate: () => other }), 'proof-invalid')
      assert.equal(await reason(asked), 'proof-missing')
      assert.equal(
        await reason({ path: '/echo', authorization: `DPoP ${token}`, certificate: () => own }),
        'token-invalid',
      )
    })

    test('a binding of a kind that is not known here is never fulfilled', async () => {
      const token = neighbours.issue('future-client', ['orders'], { confirmation: {} })
      const key = await newProofKey()
      assert.equal(await reason({ path: '/echo', token }), 'proof-missing')
      const headers = ['dpop', await key.proof(token, URL)]
      assert.equal(await reason({ path: '/echo', authorization: `DPoP ${token}`, headers }), 'proof-invalid')
    })

    test('a policy that only observes lets neither an unproved token of ours nor its proof through', async () => {
      await neighbours.apply(TRIAL)
      const key = await newProofKey()
      const token = boundToKey('trial-client', key.thumbprint)
      const asked = {
        host: 'trial.example',
        path: '/echo',
        authorization: `DPoP ${token}`,
        headers: ['dpop', 'nonsense'],
      }
      const decision = await eventually(
        async () => {
          const decided = await ask(asked)
          return decided.admitted && decided
        },
        { what: 'the policy is in force' },
      )
      assert.ok(decision.upstream.remove.includes('authorization') && decision.upstream.remove.includes('dpop'))
      const foreign = await ask({ ...asked, authorization: 'DPoP foreign' })
      assert.ok(foreign.admitted && !foreign.upstream.remove.includes('authorization'))
    })
  })

  test('one introspection serves all requests that come meanwhile', async () => {
    const token = neighbours.issue('busy-client', ['orders'])
    const decisions = await Promise.all(Array.from({ length: 20 }, () => ask({ path: '/echo', token })))
    assert.ok(decisions.every(({ admitted }) => admitted))
    assert.equal(neighbours.asked.introspect.filter((asked) => asked === token).length, 1)
  })

  test('a token that is worth nothing is not asked about again at once', async () => {
    assert.equal(await reason({ path: '/echo', token: 'nonsense' }), 'token-invalid')
    assert.equal(await reason({ path: '/echo', token: 'nonsense' }), 'token-invalid')
    assert.equal(neighbours.asked.introspect.filter((asked) => asked === 'nonsense').length, 1)
  })

  test('upstream gets the internal token and identity, and nothing that the client claims to be', async () => {
    const token = neighbours.issue('honest-client', ['orders', 'other'])
    const headers = ['X-Tollward-Client', 'admin', 'x_tollward_pass', 'free', 'X-Tollward-Anything', '1']
    const decision = await ask({ path: '/echo', token, headers })
    assert.ok(decision.admitted)
    assert.deepEqual(Object.fromEntries(decision.upstream.set), {
      authorization: 'Bearer internal.honest-client.jwt',
      'x-tollward-client': 'honest-client',
      'x-tollward-subject': 'honest-client',
      'x-tollward-scopes': 'orders other',
    })
    const removed = ['dpop', 'x-tollward-pass', 'x-bitcoin-txid', 'x_tollward_pass', 'x-tollward-anything']
    assert.deepEqual([...decision.upstream.remove].sort(), removed.sort())

    const anonymous = await ask({ path: '/public', token, headers })
    assert.ok(anonymous.admitted)
    assert.deepEqual(anonymous.upstream.set, [])
    for (const name of [
      'authorization',
      'x-tollward-client',
      'x-tollward-subject',
      'x-tollward-scopes',
      'x-tollward-pass',
    ]) {
      assert.ok(anonymous.upstream.remove.includes(name), `${name} is removed`)
    }
  })

  test('a new block counts for the next request of its source only, and ends when it is lifted', async () => {
    assert.equal(await reason({ path: '/public', from: '198.51.100.7' }), 'admitted')
    await neighbours.block('198.51.100.0/24')
    await eventually(async () => (await reason({ path: '/public', from: '198.51.100.7' })) === 'blocked', {
      what: 'it is blocked',
    })
    assert.equal(await reason({ path: '/public', from: '198.51.101.7' }), 'admitted')
    await neighbours.block('127.0.0.1')
    await neighbours.block('127.0.0.66')
    await eventually(async () => (await reason({ path: '/public', from: '127.0.0.66' })) === 'blocked', {
      what: 'it is blocked',
    })
    assert.equal(await reason({ path: '/public', from: '127.0.0.1' }), 'admitted')
    await neighbours.lift('198.51.100.0/24')
    await eventually(async () => (await reason({ path: '/public', from: '198.51.100.7' })) === 'admitted', {
      what: 'it is lifted',
    })
  })

  test('402 names plan, price for this client and where to get an invoice, and many at once ask once', async () => {
    const discounts = [{ kind: 'bitcoin', basisPoints: 1000, amountSats: 1_000n }]
    const invoicesUrl = 'http://verifier.example/invoices'
    const price = { listPriceSats: 10_000n, priceSats: 9_000n, discounts, creditSats: 700n, invoicesUrl }
    neighbours.quotes.set('orders', { isSold: true, ...price })
    const token = neighbours.issue('poor-client', ['orders'])
    const decisions = await Promise.all(Array.from({ length: 20 }, () => ask({ path: '/orders/1', token })))
    for (const decision of decisions) {
      assert.ok(!decision.admitted)
      assert.equal(decision.status, 402)
      const { type, title: _, detail: __, decision: ___, ...rest } = JSON.parse(decision.body)
      assert.equal(type, 'https://tollward.dev/problems/payment-required')
      assert.deepEqual(rest, {
        status: 402,
        plan: 'orders',
        priceSats: '9000',
        listPriceSats: '10000',
        discounts: [{ kind: 'bitcoin', basisPoints: 1000, amountSats: '1000' }],
        creditSats: '700',
        invoices: invoicesUrl,
      })
    }
    assert.equal(neighbours.asked.quote.filter((asked) => asked === 'poor-client orders').length, 1)
    neighbours.quotes.clear()
    const other = await ask({ path: '/orders/1', token: neighbours.issue('unsold-client', ['orders']) })
    assert.ok(!other.admitted)
    const { priceSats, invoices } = JSON.parse(other.body)
    assert.deepEqual([priceSats, invoices], [undefined, 'http://pay.example/invoices'])
  })

  test('whatever a client tries, few prices are asked for; its other refusals name none', async () => {
    const paths = Array.from({ length: 20 }, (_, index) => `/plan-${index}`)
    const rules = paths.map(
      (path, index) =>
        `    - { name: r${index}, match: { path: ${path} }, require: { token: {}, payment: { plan: p${index} } } }`,
    )
    const spec = `spec:\n  hosts: [many.example]\n  rules:\n${rules.join('\n')}\n`
    await neighbours.apply(`apiVersion: tollward.dev/v1\nkind: ApiPolicy\nmetadata: { name: many }\n${spec}`)
    const token = neighbours.issue('curious-client', [])
    await eventually(
      async () => (await reason({ host: 'many.example', path: '/plan-0', token })) === 'payment-required',
      {
        what: 'the policy is in force',
      },
    )
    const reasons = await Promise.all(paths.map((path) => reason({ host: 'many.example', path, token })))
    assert.deepEqual(new Set(reasons), new Set(['payment-required']))
    const asked = neighbours.asked.quote.filter((each) => each.startsWith('curious-client '))
    assert.ok(asked.length > 0 && asked.length < paths.length / 2, `${asked.length} prices asked for`)
  })

  test('what the verifier says to a txid decides, and is not asked again at once', async () => {
    const token = neighbours.issue('paying-client', ['orders'])
    const outcomes: [RedeemOutcome, number, string][] = [
      [RedeemOutcome.PENDING, 402, 'payment-pending'],
      [RedeemOutcome.NOT_SEEN, 402, 'payment-not-seen'],
      [RedeemOutcome.NOTHING_OPEN, 403, 'nothing-to-redeem'],
      [RedeemOutcome.INSUFFICIENT, 402, 'payment-insufficient'],
      [RedeemOutcome.EXHAUSTED, 402, 'pass-exhausted'],
      [RedeemOutcome.UNSPECIFIED, 503, 'unavailable'],
    ]
    for (const [outcome, status, expected] of outcomes) {
      const txid = outcome.toString(16).padStart(64, 'f')
      neighbours.redemptions.set(txid, { outcome, confirmationsMissing: 1, retryAfterSeconds: 30, detail: 'Wait.' })
      for (let times = 0; times < 2; times++) {
        const decision = await ask({ path: '/orders', token, txid: txid.toUpperCase() })
        assert.deepEqual(!decision.admitted && [decision.status, decision.reason], [status, expected])
      }
      assert.equal(neighbours.asked.redeem.filter((asked) => asked === txid).length, 1)
    }
    const pending = await ask({ path: '/orders', token, txid: RedeemOutcome.PENDING.toString().padStart(64, 'f') })
    assert.ok(!pending.admitted)
    assert.equal(JSON.parse(pending.body).confirmationsMissing, 1)
    assert.equal(new Map(pending.headers).get('retry-after'), '30')
  })

  test('a client that invents txids does not reach the verifier without limit', async () => {
    const token = neighbours.issue('inventive-client', ['orders'])
    const before = neighbours.asked.redeem.length
    const reasons = new Set<string>()
    for (let index = 0; index < 40; index++) {
      reasons.add(await reason({ path: '/orders/1', token, txid: index.toString(16).padStart(64, 'e') }))
    }
    assert.deepEqual([...reasons].sort(), ['client-limit', 'nothing-to-redeem'])
    assert.ok(neighbours.asked.redeem.length - before < 30)
  })

  test('a pass admits exactly its quota, however many requests come at once', async () => {
    const token = neighbours.issue('quota-client', ['orders'])
    const passId = await neighbours.activatePass('quota-client', 'orders', 137)
    await eventually(async () => (await reason({ path: '/orders/1', token })) === 'admitted', {
      what: 'the pass is known',
    })
    let admitted = 1
    const burst = async () => {
      const decisions = await Promise.all(Array.from({ length: 300 }, () => ask({ path: '/orders/1', token })))
      const passes = decisions.filter((decision) => decision.admitted)
      admitted += passes.length
      for (const { upstream } of passes) assert.equal(new Map(upstream.set).get('x-tollward-pass'), passId)
      const refused = decisions.filter((decision) => !decision.admitted).map(({ status }) => status)
      // Who would have to wait for a record for too long is told to come again.
      assert.deepEqual(new Set([...refused, 402, 503]), new Set([402, 503]))
      return passes.length === 0 && refused.every((status) => status === 402)
    }
    await eventually(burst, { what: 'the pass is used up' })
    assert.equal(admitted, 137)
    assert.ok(neighbours.asked.lease.filter((asked) => asked === passId).length < 40)
  })

  test('a suspended pass admits nothing, although requests of it are leased', async () => {
    const token = neighbours.issue('reorg-client', ['orders'])
    const passId = await neighbours.activatePass('reorg-client', 'orders', 1000)
    await eventually(async () => (await reason({ path: '/orders/1', token })) === 'admitted', {
      what: 'the pass is known',
    })
    await neighbours.suspendPass(passId)
    await eventually(async () => (await reason({ path: '/orders/1', token })) === 'payment-required', {
      what: 'it is refused',
    })
  })

  test('what was leased and not spent is given back at the end', async () => {
    await using stack = new AsyncDisposableStack()
    const token = neighbours.issue('leaving-client', ['orders'])
    const passId = await neighbours.activatePass('leaving-client', 'orders', 100)
    const other = await newDecider(stack)
    await eventually(async () => (await ask({ path: '/orders/1', token }, other)).admitted, {
      what: 'the pass is known',
    })
    await other[Symbol.asyncDispose]()
    assert.equal(neighbours.givenBack.get(passId), 4)
  })

  test('whoever meets a decision point that has nothing left of the pass learns when to come again', async () => {
    const token = neighbours.issue('shared-client', ['orders'])
    const passId = await neighbours.activatePass('shared-client', 'orders', 1)
    // Another holds all of it, and has served nothing yet.
    await neighbours.lease(passId, 'another', 1)
    const refusal = await eventually(
      async () => {
        const decision = await ask({ path: '/orders/1', token })
        return !decision.admitted && decision.reason === 'pass-exhausted' && decision
      },
      { what: 'the pass is known' },
    )
    assert.equal(refusal.status, 402)
    assert.equal(new Map(refusal.headers).get('retry-after'), '10')
    assert.match(refusal.body, /with other decision points/)
  })

  test('a bad document leaves the one before it in force', async () => {
    const token = neighbours.issue('steady-client', ['orders'])
    const { bus } = neighbours
    const raw = bus.rawBucket('documents')
    const key = (await raw.entries()).find((entry) => entry.key.startsWith('ApiPolicy'))?.key ?? ''
    const good = await raw.get(key)
    assert.ok(good)
    await raw.put(key, Buffer.from(good.value).fill('?', 40))
    // A later change shows that the bad one was heard.
    await neighbours.apply(MARKER)
    await eventually(async () => (await reason({ path: '/marker', host: 'marker.example' })) === 'admitted', {
      what: 'marker is in force',
    })
    assert.equal(await reason({ path: '/echo', token }), 'admitted')
    await raw.put(key, good.value)
  })

  test('a record tells the limit of a client from that of its address, which others may have used up', async () => {
    const heard: CallObserved[] = []
    await using _heard = await neighbours.bus.follow(contract(CallObservedSchema), 'now', (call) => heard.push(call))
    await neighbours.apply(LIMITED)
    for (const by of ['client', 'source'] as const) {
      const token = neighbours.issue(`limited-by-${by}`, ['orders'])
      const asked = { host: 'limited.example', path: `/by-${by}`, token, from: '203.0.113.90' }
      await eventually(async () => (await reason(asked)) === 'client-limit', { what: `the limit by ${by} is overrun` })
      const limited = () => heard.find((call) => call.clientId === `limited-by-${by}` && call.reason === 'client-limit')
      const record = await eventually(() => limited() ?? false, { what: 'it is recorded' })
      assert.equal(record.limitedByAddress, by === 'source')
      assert.equal(record.limit, by)
      assert.deepEqual(
        record.stages.map(({ name }) => name),
        ['canonical', 'blocks', 'source-limits', 'policy', 'token', 'proof', 'rights', 'limits'],
      )
    }
  })

  test('refusals are recorded with hashes only, and many of one source are folded into one with a count', async () => {
    const heard: CallObserved[] = []
    await using _listening = neighbours.bus.listen(contract(CallObservedSchema), (call) => void heard.push(call))
    const token = neighbours.issue('recorded-client', ['orders'])
    const from = '192.0.2.200'
    for (let index = 0; index < 100; index++) await ask({ path: '/orders', token, txid: TXID, from })
    const ours = () => heard.filter((call) => call.clientId === 'recorded-client' && call.outcome === Outcome.REFUSED)
    await eventually(() => ours().reduce((total, { count }) => total + count, 0) === 100, { what: 'all are recorded' })
    assert.ok(ours().length < 40)
    const [first] = ours()
    assert.equal(first?.tokenHash, hash('sha256', token, 'hex'))
    assert.equal(first?.txidHash, hash('sha256', TXID, 'hex'))
    assert.equal(first?.source, 'gateway')
    assert.deepEqual(Buffer.from(first?.address ?? []), Buffer.from(parseAddress(from) ?? []))
    assert.ok(!JSON.stringify(heard, (_, value) => (typeof value === 'bigint' ? String(value) : value)).includes(token))
  })

  test('while revocations cannot be heard no token is trusted, and anonymous rules go on', {
    timeout: 30_000,
  }, async () => {
    const token = neighbours.issue('unheard-client', ['orders'])
    assert.equal(await reason({ path: '/echo', token }), 'admitted')
    await neighbours.nats.stop()
    assert.equal(await reason({ path: '/nowhere' }), 'token-missing')
    await eventually(() => decider.notReady() !== undefined, { what: 'silence is noticed', timeoutMs: 15_000 })
    await eventually(async () => (await reason({ path: '/echo', token })) === 'unavailable', {
      what: 'no token is trusted',
    })
    assert.equal(await reason({ path: '/public' }), 'admitted')
    await eventually(async () => (await recordsLost()) > 0, { what: 'records that are lost are counted' })
    await neighbours.nats.start()
    await eventually(() => decider.notReady() === undefined, { what: 'feeds are heard again', timeoutMs: 15_000 })
    const trusted = async () => (await reason({ path: '/echo', token })) === 'admitted'
    await eventually(trusted, { what: 'the token is trusted again' })
  })

  test('without the introspector or the verifier what needs them is 503, and what does not is decided', async () => {
    const known = neighbours.issue('early-client', ['orders'])
    assert.equal(await reason({ path: '/echo', token: known }), 'admitted')
    const served = neighbours.issue('served-client', ['orders'])
    await neighbours.activatePass('served-client', 'orders', 1000)
    await eventually(async () => (await reason({ path: '/orders/1', token: served })) === 'admitted', {
      what: 'the pass is known',
    })
    await neighbours.stopVerifier()
    const more = await Promise.all(Array.from({ length: 40 }, () => reason({ path: '/orders/1', token: served })))
    assert.equal(more.filter((each) => each === 'admitted').length, 9, 'ten of a thousand may be unrecorded')
    assert.deepEqual(new Set(more), new Set(['admitted', 'unavailable']))
    assert.equal(await reason({ path: '/orders/1', token: known, txid: '9'.repeat(64) }), 'unavailable')
    assert.equal(await reason({ path: '/orders/1', token: known }), 'payment-required')
    await neighbours.stopIntrospector()
    const decision = await ask({ path: '/echo', token: neighbours.issue('late-client', ['orders']) })
    assert.ok(!decision.admitted)
    assert.equal(decision.status, 503)
    assert.ok(Number(new Map(decision.headers).get('retry-after')) > 0)
    assert.equal(await reason({ path: '/echo', token: known }), 'admitted')
    assert.equal(await reason({ path: '/public' }), 'admitted')
  })
})

function facts({
  host = 'api.example',
  path = '/public',
  method = 'GET',
  token,
  authorization = token === undefined ? undefined : `Bearer ${token}`,
  txid,
  from = '192.0.2.1',
  headers = [],
  certificate,
}: Ask) {
  const address = parseAddress(from)
  assert.ok(address)
  const list = [...headers]
  if (authorization !== undefined) list.push('Authorization', authorization)
  if (txid !== undefined) list.push('X-Bitcoin-Txid', txid)
  return {
    method,
    scheme: 'https',
    host,
    target: path,
    address,
    headers: list,
    ...(certificate ? { certificate } : {}),
  } as const
}
