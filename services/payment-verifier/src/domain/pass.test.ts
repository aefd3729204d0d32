import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { type Pass, PassSchema, PassState } from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import fc from 'fast-check'
import {
  drawnFor,
  LEASE_MARGIN_MS,
  LEASE_REQUESTS_MAX,
  LEASES_MAX,
  lease,
  lossBound,
  passIdOf,
  record,
  servedRequests,
  suspend,
  withoutLapsed,
} from './pass.ts'

const LASTS_MS = 1_000
const QUOTA = 1_000n
const BOUND = 10

const pass = (change: Partial<Pass> = {}): Pass => ({
  ...create(PassSchema, {
    format: 1,
    passId: 'x',
    quotaRequests: QUOTA,
    state: PassState.ACTIVE,
    unrecordedRequestsMax: BOUND,
  }),
  ...change,
})
const wish = (holder: string, wantedRequests: number, leaseId = `lease of ${holder}`) => ({
  holder,
  wantedRequests,
  leaseId,
})
const use = (holder: string, served: number, more: { leaseId?: string; ends?: boolean } = {}) => ({
  holder,
  leaseId: `lease of ${holder}`,
  servedRequests: served,
  ends: false,
  ...more,
})

/** A decision point: never more than the bound beyond what was acknowledged. */
interface Holder {
  leaseId: string
  granted: number
  served: number
  acknowledged: number
}

/** A pass, those who serve it, and what they truly served. */
class World {
  pass = pass()
  nowMs = 0
  served = 0
  /** Leases that ended without their holder. */
  lapses = 0
  #leaseIds = 0
  readonly #holders = new Map<string, Holder>()
  readonly #crashes = new Map<string, number>()

  lease(name: string, wanted: number, isHeard: boolean): void {
    this.#leaseIds += 1
    this.#take(
      lease(this.pass, wish(this.#processOf(name), wanted, `${this.#leaseIds}`), this.nowMs, LASTS_MS),
      (leased) => {
        if (!isHeard || leased === undefined) return
        const known = this.#holders.get(name)
        const granted = Number(leased.grantedRequests)
        if (known?.leaseId === leased.leaseId) known.granted = granted
        else this.#holders.set(name, { leaseId: leased.leaseId, granted, served: 0, acknowledged: 0 })
      },
    )
  }

  serve(name: string, wanted: number): void {
    const holder = this.#holders.get(name)
    if (holder === undefined || this.pass.state === PassState.SUSPENDED) return
    const { granted, served, acknowledged } = holder
    const count = Math.min(wanted, granted - served, acknowledged + BOUND - served)
    holder.served += count
    this.served += count
  }

  record(name: string, ends: boolean, isHeard: boolean): void {
    const holder = this.#holders.get(name)
    if (holder === undefined) return
    const { leaseId, served } = holder
    if (ends) this.#holders.delete(name)
    this.#take(
      record(this.pass, use(this.#processOf(name), served, { leaseId, ends }), this.nowMs, LASTS_MS),
      (leased) => {
        if (isHeard && leased === undefined) this.#holders.delete(name)
        else if (isHeard) holder.acknowledged = served
      },
    )
  }

  crash(name: string): void {
    this.#holders.delete(name)
    this.#crashes.set(name, (this.#crashes.get(name) ?? 0) + 1)
  }

  /** What starts after a crash is another process, and says so. */
  #processOf(name: string): string {
    return `${name}${this.#crashes.get(name) ?? 0}`
  }

  wait(ms: number): void {
    this.nowMs += ms
  }

  #take(changed: ReturnType<typeof lease>, heard: (leased: (typeof changed)['lease']) => void): void {
    this.lapses += this.pass.leases.length - withoutLapsed(this.pass, this.nowMs).leases.length
    this.pass = { ...changed.after, drawnRequests: drawnFor(changed.after) }
    heard(changed.lease)
  }

  finish(): void {
    this.wait(LASTS_MS + LEASE_MARGIN_MS)
    this.lapses += this.pass.leases.length
    this.pass = withoutLapsed(this.pass, this.nowMs)
  }
}

const holderName = fc.constantFrom('a', 'b', 'c')
const isHeard = fc.boolean()
const step = fc.oneof(
  fc.record({ do: fc.constant('lease' as const), holderName, wanted: fc.integer({ min: 0, max: 400 }), isHeard }),
  fc.record({ do: fc.constant('serve' as const), holderName, wanted: fc.integer({ min: 1, max: 400 }) }),
  fc.record({ do: fc.constant('record' as const), holderName, ends: fc.boolean(), isHeard }),
  fc.record({ do: fc.constant('crash' as const), holderName }),
  fc.record({ do: fc.constant('wait' as const), ms: fc.integer({ min: 0, max: 2 * LASTS_MS + LEASE_MARGIN_MS }) }),
  fc.record({ do: fc.constant('suspend' as const), isSuspended: fc.boolean() }),
)

function take(world: World, each: typeof step extends fc.Arbitrary<infer S> ? S : never): void {
  if (each.do === 'lease') world.lease(each.holderName, each.wanted, each.isHeard)
  else if (each.do === 'serve') world.serve(each.holderName, each.wanted)
  else if (each.do === 'record') world.record(each.holderName, each.ends, each.isHeard)
  else if (each.do === 'crash') world.crash(each.holderName)
  else if (each.do === 'wait') world.wait(each.ms)
  else world.pass = suspend(world.pass, each.isSuspended) ?? world.pass
}

test('whatever crashes, is lost, repeated or suspended, no more is served than was bought, and each lapse costs the bound', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 80, size: 'max' }), (steps) => {
      const world = new World()
      for (const each of steps) {
        take(world, each)
        assert.ok(world.served <= QUOTA, `${world.served} served`)
        assert.ok(world.pass.leasedRequests <= QUOTA)
        assert.ok(world.pass.leasedRequests <= world.pass.drawnRequests, 'drawn before it is leased')
        assert.ok(servedRequests(world.pass) >= 0n)
      }
      world.finish()
      const left = QUOTA - world.pass.leasedRequests
      assert.ok(BigInt(world.served) + left <= QUOTA, 'what was served does not come back')
      assert.ok(BigInt(world.served + BOUND * world.lapses) + left >= QUOTA, 'the rest does')
    }),
    { numRuns: 300 },
  )
})

test('a holder that asks again without having served gets nothing more, and what it served makes room', () => {
  const first = lease(pass(), wish('a', 50), 0, LASTS_MS)
  assert.equal(first.lease?.grantedRequests, 50n)
  const again = lease(first.after, wish('a', 50, 'other'), 0, LASTS_MS)
  assert.deepEqual([again.lease?.leaseId, again.lease?.grantedRequests], ['lease of a', 50n])
  const { after } = record(again.after, use('a', 20), 0, LASTS_MS)
  assert.equal(lease(after, wish('a', 50), 0, LASTS_MS).lease?.grantedRequests, 70n)
  assert.equal(lease(pass({ quotaRequests: 1_000_000n }), wish('a', 4e9), 0, 1).after.leasedRequests, 20_000n)
  assert.equal(LEASE_REQUESTS_MAX, 20_000)
})

test('a late or repeated record changes nothing, and nobody records for another', () => {
  const { after: leased } = lease(pass(), wish('a', 50), 0, LASTS_MS)
  const { after: recorded } = record(leased, use('a', 30), 0, LASTS_MS)
  assert.equal(servedRequests(recorded), 30n)
  assert.equal(servedRequests(record(recorded, use('a', 10), 0, LASTS_MS).after), 30n)
  assert.deepEqual(record(recorded, { ...use('b', 0, { ends: true }), leaseId: 'lease of a' }, 0, 1), {
    after: recorded,
  })
  const { after: ended } = record(recorded, use('a', 31, { ends: true }), 0, LASTS_MS)
  assert.deepEqual([ended.leasedRequests, ended.leases], [31n, []])
  assert.deepEqual(record(ended, use('a', 31, { ends: true }), 0, LASTS_MS), { after: ended })
  const unknown = record(recorded, use('a', 0, { leaseId: '', ends: true }), 0, LASTS_MS).after
  assert.deepEqual([unknown.leasedRequests, unknown.leases], [30n, []])
})

test('of a holder that is silent for too long, the bound counts as served and the rest comes back, not earlier', () => {
  const { after: leased } = lease(pass(), wish('a', 50), 0, LASTS_MS)
  const { after: recorded } = record(leased, use('a', 30), 500, LASTS_MS)
  const lapsesAtMs = 500 + LASTS_MS + LEASE_MARGIN_MS
  assert.equal(withoutLapsed(recorded, lapsesAtMs - 1), recorded)
  const lapsed = withoutLapsed(recorded, lapsesAtMs)
  assert.deepEqual([lapsed.leasedRequests, lapsed.leases], [40n, []])
  const { after: nearlyServed } = record(leased, use('a', 45), 500, LASTS_MS)
  assert.equal(withoutLapsed(nearlyServed, lapsesAtMs).leasedRequests, 50n)
  assert.equal(record(recorded, use('a', 31), lapsesAtMs, LASTS_MS).lease, undefined)
})

test('the last chunk is what is left, and a pass is used up when all of it is recorded', () => {
  const last = lease(pass({ leasedRequests: 990n }), wish('a', 50), 0, LASTS_MS)
  assert.deepEqual([last.lease?.grantedRequests, last.after.state], [10n, PassState.ACTIVE])
  assert.deepEqual(lease(last.after, wish('b', 1), 0, LASTS_MS), { after: last.after })
  const { after } = record(last.after, use('a', 10), 0, LASTS_MS)
  assert.deepEqual([after.state, after.stateChanges], [PassState.EXHAUSTED, 1])
  const suspended = suspend(after, true) ?? after
  assert.equal(suspended.state, PassState.SUSPENDED)
  assert.equal(suspend(suspended, false)?.state, PassState.EXHAUSTED)
})

test('a suspended pass gives nothing out and takes records', () => {
  const { after: leased } = lease(pass(), wish('a', 50), 0, LASTS_MS)
  const suspended = suspend(leased, true) ?? leased
  assert.deepEqual(lease(suspended, wish('b', 5), 0, LASTS_MS), { after: suspended })
  assert.equal(record(suspended, use('a', 7), 0, LASTS_MS).lease?.recordedRequests, 7n)
})

test('what is drawn covers what is leased, in ten steps', () => {
  assert.equal(drawnFor(pass()), 0n)
  assert.equal(drawnFor(pass({ leasedRequests: 1n })), 100n)
  assert.equal(drawnFor(pass({ leasedRequests: 101n, drawnRequests: 100n })), 200n)
  assert.equal(drawnFor(pass({ leasedRequests: 50n, drawnRequests: 100n })), 100n)
  assert.equal(drawnFor(pass({ quotaRequests: 7n, leasedRequests: 7n, drawnRequests: 6n })), 7n)
  assert.equal(drawnFor(pass({ quotaRequests: 15n, leasedRequests: 15n })), 15n)
})

test('the loss bound is a hundredth of the quota, at least 1 and at most 1000', () => {
  assert.deepEqual([1n, 100n, 101n, 1000n, 100_000n, 10n ** 9n].map(lossBound), [1, 1, 2, 10, 1000, 1000])
  assert.equal(lossBound(0n), 0)
})

test('a pass is held by so many decision points at once and no more', () => {
  let held = pass({ quotaRequests: 1_000_000n })
  for (let index = 0; index < LEASES_MAX; index += 1) held = lease(held, wish(`h${index}`, 1), 0, LASTS_MS).after
  assert.throws(() => lease(held, wish('one more', 1), 0, LASTS_MS), AppError)
  assert.equal(lease(held, wish('h0', 2), 0, LASTS_MS).lease?.grantedRequests, 2n)
})

test('an invoice has one pass id, which no other has', () => {
  assert.equal(passIdOf('a'), passIdOf('a'))
  assert.notEqual(passIdOf('a'), passIdOf('b'))
  assert.match(passIdOf('a'), /^[0-9a-f]{32}$/)
})
