import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Disposition } from '@tollward/contracts/detection'
import { alert, NOW_MS } from '../test-alert.ts'
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

test('an alert without a usable id is refused', () => {
  for (const alertId of ['', 'with space', 'line\nbreak', 'x'.repeat(129)]) {
    assert.throws(() => detectionFinding(alert({ alertId }), NOW_MS), { code: 'invalid_argument' })
  }
})
