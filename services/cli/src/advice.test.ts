import assert from 'node:assert/strict'
import { test } from 'node:test'
import { REASONS } from '@tollward/decision/policies'
import { ADVICE, adviceFor } from './advice.ts'

const DECISION = { clientId: 'shop', address: '192.0.2.1', rule: 'orders/read', host: 'api.example' }

test('for each reason there is one line of advice, and for nothing else', () => {
  assert.deepEqual(Object.keys(ADVICE).sort(), Object.keys(REASONS).sort())
  for (const [reason, advice] of Object.entries(ADVICE)) {
    assert.match(advice, /^[A-Z][^\n]{10,279}\.$/, reason)
  }
})

test('advice names what the decision was about, and keeps the name where that is not known', () => {
  assert.match(adviceFor('scope-missing', DECISION) ?? '', /npx --no tollward get Client shop\./)
  assert.match(adviceFor('blocked', DECISION) ?? '', /blocks remove 192\.0\.2\.1\.$/)
  assert.match(adviceFor('client-limit', { ...DECISION, clientId: '$&' }) ?? '', /ApiPolicy orders,/)
  assert.match(adviceFor('payment-required', { ...DECISION, clientId: '' }) ?? '', /--client CLIENT\.$/)
  assert.equal(adviceFor('', DECISION), undefined)
  assert.equal(adviceFor('constructor', DECISION), undefined)
})
