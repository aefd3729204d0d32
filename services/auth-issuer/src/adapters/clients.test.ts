import assert from 'node:assert/strict'
import { test } from 'node:test'
import { contract } from '@tollward/contracts'
import { ClientRevokedSchema } from '@tollward/contracts/token'
import { eventually, requires } from '@tollward/testkit'
import { failingEvents, startTestStores } from '../test-stores.ts'

const skip = await requires({ tools: ['nats-server'] })

test('the end of a client’s tokens whose event was lost is announced by the next look at the client', {
  skip,
}, async () => {
  await using setup = await startTestStores()
  await setup.apply('web')
  const events = failingEvents()
  const [failing, whole] = [await setup.replica(events.wrap), await setup.replica()]
  const before = await whole.clients.find('web')
  const seen: string[] = []
  await using _events = await whole.bus.follow(contract(ClientRevokedSchema), 'beginning', (event) =>
    seen.push(`${event.clientId}: ${event.reason}`),
  )
  for (const [ending, reason] of [
    [() => failing.clients.endTokens('web', 'stolen'), 'stolen'],
    [() => failing.clients.forget('web'), 'client deleted'],
  ] as const) {
    events.refuse = true
    await assert.rejects(ending(), /the event is lost/)
    await assert.rejects(failing.clients.find('web'), /the event is lost/, 'nobody gets the client meanwhile')
    events.refuse = false
    assert.notEqual((await whole.clients.find('web'))?.generation, before?.generation)
    await eventually(() => seen.includes(`web: ${reason}`), { what: `${reason} is announced` })
  }
  assert.equal(seen.length, 2)
})

test('what was applied is heard within moments, and found at once', { skip }, async () => {
  await using setup = await startTestStores()
  const { clients } = await setup.replica()
  assert.equal(await clients.findHeard('web'), undefined)
  await setup.apply('web')
  assert.notEqual(await clients.find('web'), undefined)
  assert.notEqual(await clients.findHeard('web'), undefined, 'before somebody is refused the source is asked')
  await setup.apply('web', { scopes: ['stock'] })
  assert.deepEqual((await clients.find('web'))?.scopes, ['stock'])
  await eventually(async () => (await clients.findHeard('web'))?.scopes[0] === 'stock', { what: 'the change is heard' })
  const heard = await clients.findHeard('web')
  await setup.nats.stop()
  await eventually(
    () =>
      clients.findHeard('web').then(
        () => false,
        () => true,
      ),
    {
      what: 'a feed that is silent is not believed',
      timeoutMs: 10_000,
    },
  )
  await setup.nats.start()
  await eventually(
    () =>
      clients.findHeard('web').then(
        (found) => found?.generation === heard?.generation,
        () => false,
      ),
    {
      what: 'the client is heard of again',
      timeoutMs: 10_000,
    },
  )
})
