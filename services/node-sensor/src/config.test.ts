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

test('rates and kinds of malformed packets are read as the kernel takes them; without a word nothing more is dropped', () => {
  const { dropAnomalies, synsPerSource, synsPerPort, synMode, unknownTransport } = readConfig(ConfigSchema, least)
  assert.deepEqual(
    [dropAnomalies, synsPerSource, synsPerPort, synMode, unknownTransport],
    [[], undefined, undefined, 'drop', 'judged'],
  )
  const set = readConfig(ConfigSchema, {
    ...least,
    TOLLWARD_DROP_ANOMALIES: 'malformed, vlan_too_deep',
    TOLLWARD_SYNS_PER_SOURCE: '100/200',
  })
  assert.deepEqual(set.dropAnomalies, ['malformed', 'vlanTooDeep'])
  assert.deepEqual(set.synsPerSource, { packetsPerSecond: 100, burst: 200 })
})

test('every wrong setting is named', () => {
  const wrong = {
    TOLLWARD_INTERFACES: 'eth0,a/b',
    TOLLWARD_MANAGEMENT_PORTS: '22,65536',
    TOLLWARD_GUARDED_ADDRESSES: '10.0.0.0/8',
    TOLLWARD_PIN_DIRECTORY: 'pins',
    TOLLWARD_NODE: 'a node',
    TOLLWARD_DROP_ANOMALIES: 'odd',
    TOLLWARD_SYNS_PER_SOURCE: '100',
    TOLLWARD_SYNS_PER_PORT: '0/1',
    TOLLWARD_SYN_MODE: 'off',
    TOLLWARD_UNKNOWN_TRANSPORT: 'dropped',
  }
  const read = () => readConfig(ConfigSchema, { ...least, ...wrong })
  for (const variable of Object.keys(wrong)) assert.throws(read, new RegExp(variable))
})
