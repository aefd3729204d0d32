import assert from 'node:assert/strict'
import { test } from 'node:test'
import { formatFault, parseDocuments } from './mod.ts'
import { DocumentError } from './parse.ts'

const text = (spec: Record<string, unknown>) =>
  JSON.stringify({ apiVersion: 'tollward.dev/v1', kind: 'KernelRule', metadata: { name: 'r' }, spec })

function faultsOf(spec: Record<string, unknown>): string {
  try {
    parseDocuments(text(spec), 'f')
  } catch (error) {
    if (error instanceof DocumentError) return error.faults.map(formatFault).join('\n')
    throw error
  }
  return ''
}

const GOOD = { direction: 'ingress', protocol: 'tcp', action: 'drop' }

test('a KernelRule says no more than a direction and an action, and the rest has one meaning', () => {
  const [document] = parseDocuments(text({ direction: 'egress', action: 'drop' }), 'f')
  assert.ok(document?.kind === 'KernelRule')
  assert.deepEqual(document.spec, {
    direction: 'egress',
    protocol: 'any',
    action: 'drop',
    mode: 'enforce',
    priority: 1000,
  })
})

test('what a kernel could not do as it is written is refused where it stands', () => {
  const good: Record<string, unknown>[] = [
    { ports: [1, 65_535, '8000-8999'] },
    { protocol: 'any', sources: ['10.0.0.0/8', '2001:db8::/32'], destinations: ['::1'] },
    { action: 'rate-limit', rate: { packetsPerSecond: 5 }, mode: 'audit' },
    { action: 'alert', ttl: '1h' },
    { sources: ['::ffff:192.0.2.1'], destinations: ['192.0.2.2'] },
  ]
  for (const change of good) assert.equal(faultsOf({ ...GOOD, ...change }), '', JSON.stringify(change))

  const port = /ports\[0\]: must be a port from 1 to 65535, or a range of them such as 8000-8999/
  const bad: [Record<string, unknown>, RegExp][] = [
    [{ direction: undefined }, /spec\.direction: is required/],
    [{ action: 'reject' }, /spec\.action: must be one of drop, allow, alert, rate-limit/],
    [{ action: 'rate-limit' }, /spec\.rate: is for rate-limit, and it needs one/],
    [{ rate: { packetsPerSecond: 5 } }, /spec\.rate: is for rate-limit/],
    [{ action: 'rate-limit', rate: { packetsPerSecond: 0 } }, /packetsPerSecond: must be at least 1/],
    [{ protocol: 'any', ports: [80] }, /spec\.ports: are for the protocols tcp and udp/],
    [{ protocol: 'icmp', ports: [80] }, /spec\.ports: are for the protocols tcp and udp/],
    [{ action: 'alert', mode: 'audit' }, /spec\.mode: audit is for drop and rate-limit/],
    [{ action: 'allow', mode: 'audit' }, /spec\.mode: audit is for drop and rate-limit/],
    [{ sources: [] }, /spec\.sources: must have at least 1 entry/],
    [{ sources: ['10.0.0.1/8'] }, /sources\[0\]: must be an address or a CIDR without host bits/],
    [{ sources: ['10.0.0.0/8'], destinations: ['::/0'] }, /destinations: are of another IP version than sources/],
    [{ priority: 65_536 }, /spec\.priority: must be at most 65535/],
    [{ ports: [0] }, /ports\[0\]: must be at least 1/],
    [{ ports: [65_536] }, /ports\[0\]: must be at most 65535/],
    ...[['80'], ['90-80'], ['80-80'], ['0-10'], ['1-65536'], ['080-90'], [null], [1.5]].map(
      (ports): [Record<string, unknown>, RegExp] => [{ ports }, port],
    ),
  ]
  for (const [change, fault] of bad) assert.match(faultsOf({ ...GOOD, ...change }), fault, JSON.stringify(change))
})
