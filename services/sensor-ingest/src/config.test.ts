import assert from 'node:assert/strict'
import { test } from 'node:test'
import { formatRange } from '@tollward/contracts'
import { readConfig } from '@tollward/runtime'
import { Config } from './config.ts'

const base = { TOLLWARD_HEALTH_PORT: '0' }

test('127.0.0.1 and ::1 are guarded whatever is configured', () => {
  const guarded = (environment: Record<string, string>) =>
    readConfig(Config, { ...base, ...environment }).guardedAddresses.map(formatRange)
  assert.deepEqual(guarded({}), ['127.0.0.1', '::1'])
  assert.deepEqual(guarded({ TOLLWARD_GUARDED_ADDRESSES: '10.0.0.5, 2001:db8::5' }), [
    '10.0.0.5',
    '2001:db8::5',
    '127.0.0.1',
    '::1',
  ])
})

test('a guarded address that is none, or a whole network, is refused by name', () => {
  for (const text of ['10.0.0.0/8', 'gateway', '10.0.0.5,10.0.0']) {
    assert.throws(
      () => readConfig(Config, { ...base, TOLLWARD_GUARDED_ADDRESSES: text }),
      /GUARDED_ADDRESSES.*no IP address/,
    )
  }
})
