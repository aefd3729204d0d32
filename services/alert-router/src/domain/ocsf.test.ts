import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Disposition } from '@tollward/contracts/detection'
import { address, alert, NOW_MS } from '../test-alert.ts'
import { detectionFinding, severityToken } from './ocsf.ts'

test('a finding says who, what, how sure, and what was done', () => {
  const finding = detectionFinding(alert(), NOW_MS)
  assert.equal(finding.finding_info.uid, 'f00d')
  assert.equal(finding.type_uid, 200_401)
  assert.deepEqual([finding.severity_id, severityToken(finding), finding.confidence_id], [4, 'high', 3])
  assert.deepEqual(finding.evidences?.[0]?.src_endpoint, { ip: '203.0.113.66' })
  assert.deepEqual(finding.observables?.[0]?.value, '203.0.113.66')
  assert.equal(finding.finding_info.attacks?.[0]?.technique.uid, 'T1499')
  assert.equal(finding.unmapped?.blocked_until_time, NOW_MS + 300_000)
})

test('action and disposition tell a block from a dry run and from a mere detection', () => {
  const control = (disposition: Disposition) => {
    const { action_id, disposition_id } = detectionFinding(alert({ disposition }), NOW_MS)
    return [action_id, disposition_id]
  }
  assert.deepEqual(control(Disposition.BLOCKED), [2, 2])
  assert.deepEqual(control(Disposition.WOULD_BLOCK), [3, 15])
  assert.deepEqual(control(Disposition.DETECTED), [3, 19])
})

test('what left a node is told as outbound, everything else as inbound', () => {
  const directions = [false, true].map((outbound) => {
    const sample = { destination: address('192.0.2.1'), destinationPort: 25, protocol: 6, outbound }
    const [evidence] = detectionFinding(alert({ evidence: [sample] }), NOW_MS).evidences ?? []
    return evidence && 'connection_info' in evidence && evidence.connection_info
  })
  assert.deepEqual(directions, [
    { direction_id: 1, direction: 'Inbound', protocol_num: 6, protocol_name: 'tcp' },
    { direction_id: 2, direction: 'Outbound', protocol_num: 6, protocol_name: 'tcp' },
  ])
})

test('an alert without a usable id is refused', () => {
  for (const alertId of ['', 'with space', 'line\nbreak', 'x'.repeat(129)]) {
    assert.throws(() => detectionFinding(alert({ alertId }), NOW_MS), { code: 'invalid_argument' })
  }
})
