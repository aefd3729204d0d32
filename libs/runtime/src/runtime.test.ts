import assert from 'node:assert/strict'
import { chmodSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { AppError } from '@tollward/errors'
import { temporaryDirectory } from '@tollward/testkit'
import { Counter, Registry } from 'prom-client'
import { z } from 'zod'
import { baseConfig, readConfig, readSecretFile } from './config.ts'
import { startHealthServer } from './health.ts'
import { createLog } from './log.ts'
import { childTraceparent, newTraceparent } from './trace.ts'

const schema = z.strictObject({ ...baseConfig, listenPort: z.coerce.number<string>().int(), planName: z.string() })

test('a configuration reports every wrong, missing and unknown variable at once', () => {
  const environment = {
    TOLLWARD_HEALTH_PORT: '70000',
    TOLLWARD_LISTEN_PORT: 'abc',
    TOLLWARD_PLAN_NAMES: 'x',
    PATH: '/bin',
  }
  assert.throws(
    () => readConfig(schema, environment),
    (error) => {
      assert.ok(error instanceof AppError)
      for (const variable of [
        'TOLLWARD_HEALTH_PORT',
        'TOLLWARD_LISTEN_PORT',
        'TOLLWARD_PLAN_NAME: is missing',
        'TOLLWARD_PLAN_NAMES: there is no such',
      ]) {
        assert.match(error.message, new RegExp(variable))
      }
      return true
    },
  )
  const config = readConfig(schema, { TOLLWARD_HEALTH_PORT: '0', TOLLWARD_LISTEN_PORT: '1', TOLLWARD_PLAN_NAME: 'p' })
  assert.deepEqual(config, {
    natsUrl: 'nats://127.0.0.1:4222',
    healthHost: '127.0.0.1',
    healthPort: 0,
    logLevel: 'info',
    listenPort: 1,
    planName: 'p',
  })
})

test('a secret that others can read is refused', async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'seed')
  writeFileSync(path, 'SUAB\n', { mode: 0o600 })
  assert.equal(readSecretFile(path), 'SUAB')
  chmodSync(path, 0o644)
  assert.throws(() => readSecretFile(path), /chmod 600/)
})

test('no secret reaches a log, at the top, below, or in headers', () => {
  const lines: string[] = []
  const log = createLog('test', 'info', { write: (line) => void lines.push(line) })
  log.info(
    {
      token: 's3cret',
      request: { headers: { authorization: 'Bearer s3cret', cookie: 's3cret', 'set-cookie': 's3cret' } },
      client: { clientSecret: 's3cret' },
    },
    'seen',
  )
  assert.equal(lines.length, 1)
  assert.doesNotMatch(lines.join(), /s3cret/)
  assert.match(lines.join(), /\[secret\]/)
})

test('readiness tells its reasons, ends first on shutdown, and metrics are served', async () => {
  const registry = new Registry()
  new Counter({ name: 'tollward_test_total', help: 'h', registers: [registry] }).inc()
  await using health = await startHealthServer({ host: '127.0.0.1', port: 0, registry })
  const get = async (path: string) => {
    const response = await fetch(`http://127.0.0.1:${health.port}${path}`)
    return { status: response.status, body: await response.text() }
  }
  let reason: string | undefined = 'is not there'
  health.check('bus', () => reason)
  assert.equal((await get('/healthz/live')).status, 200)
  assert.match((await get('/healthz/ready')).body, /"is starting"/)
  health.starting('7 of 9 blocks are read')
  assert.match((await get('/healthz/ready')).body, /"is starting: 7 of 9 blocks are read"/)
  health.ready()
  const waiting = await get('/healthz/ready')
  assert.equal(waiting.status, 503)
  assert.match(waiting.body, /bus: is not there/)
  reason = undefined
  assert.equal((await get('/healthz/ready')).status, 200)
  assert.match((await get('/metrics')).body, /tollward_test_total 1/)
  health.stopping()
  assert.equal((await get('/healthz/ready')).status, 503)
  assert.equal((await get('/nothing')).status, 404)
})

test('a trace goes on with a new span, and a malformed one is replaced', () => {
  const parent = newTraceparent()
  const child = childTraceparent(parent)
  assert.equal(child.slice(0, 36), parent.slice(0, 36))
  assert.notEqual(child, parent)
  for (const bad of [
    undefined,
    '',
    'x',
    `00-${'0'.repeat(32)}-${'1'.repeat(16)}-01`,
    parent.toUpperCase(),
    `${parent}-x`,
  ]) {
    assert.match(childTraceparent(bad), /^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/)
  }
})
