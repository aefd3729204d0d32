import assert from 'node:assert/strict'
import { hostname } from 'node:os'
import { test } from 'node:test'
import { readConfig } from '@tollward/runtime'
import { ConfigSchema } from './config.ts'

const least = { TOLLWARD_HEALTH_PORT: '0', TOLLWARD_INTERFACES: 'lo' }

test('only the interfaces must be named', () => {
  const { interfaces, node, mode, managementPorts, guardedAddresses, pinDirectory } = readConfig(ConfigSchema, least)
  assert.deepEqual(interfaces, ['lo'])
  assert.equal(node, hostname())
  assert.equal(mode, 'enforce')
  assert.deepEqual(managementPorts, [22, 4222, 9090])
  assert.deepEqual(guardedAddresses, [])
  assert.equal(pinDirectory, '/sys/fs/bpf/tollward')
})

test('every wrong setting is named', () => {
  const wrong = {
    TOLLWARD_INTERFACES: 'eth0,a/b',
    TOLLWARD_MANAGEMENT_PORTS: '22,65536',
    TOLLWARD_GUARDED_ADDRESSES: '10.0.0.0/8',
    TOLLWARD_PIN_DIRECTORY: 'pins',
    TOLLWARD_NODE: 'a node',
  }
  const read = () => readConfig(ConfigSchema, { ...least, ...wrong })
  for (const variable of Object.keys(wrong)) assert.throws(read, new RegExp(variable))
})
