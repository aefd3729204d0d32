import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { test } from 'node:test'
import { jetstream, jetstreamManager } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import { requires, startNatsServer } from './mod.ts'

const skip = await requires({ tools: ['nats-server'] })

test('a stream survives an orderly stop and a crash, on the same port', { skip }, async () => {
  await using server = await startNatsServer()
  {
    await using client = await connect({ servers: server.url })
    await (await jetstreamManager(client)).streams.add({ name: 'KEPT', subjects: ['kept'] })
    await jetstream(client).publish('kept', 'one')
  }
  await server.stop()
  await assert.rejects(connect({ servers: server.url, reconnect: false }), /refused/i)
  await server.start()
  {
    await using client = await connect({ servers: server.url })
    await jetstream(client).publish('kept', 'two')
  }
  await server.kill()
  await server.start()
  await using client = await connect({ servers: server.url })
  const { state } = await (await jetstreamManager(client)).streams.info('KEPT')
  assert.equal(state.messages, 2)
})

test('a configuration with users is in force', { skip }, async () => {
  const config = 'authorization { users = [{ user: alice, password: secret, permissions: { publish: ["a"] } }] }'
  await using server = await startNatsServer({ config })
  await assert.rejects(connect({ servers: server.url }), /authorization/i)
  await using client = await connect({ servers: server.url, user: 'alice', pass: 'secret' })
  assert.equal(client.info?.jetstream, true)
})

test('a server that cannot start says why', { skip }, async () => {
  await assert.rejects(startNatsServer({ config: 'no_such_setting: 1' }), /nats-server ended .*no_such_setting/s)
})

test('nothing is left when the scope ends', { skip }, async () => {
  let url: string
  let storeDir: string
  {
    await using server = await startNatsServer()
    url = server.url
    storeDir = server.storeDir
  }
  await assert.rejects(connect({ servers: url, reconnect: false }), /refused/i)
  assert.equal(existsSync(storeDir), false)
})
