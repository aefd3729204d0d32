import assert from 'node:assert/strict'
import { test } from 'node:test'
import { formTarget } from './layout.ts'

test('a form may lead to the client’s origin, or to its own scheme, and to nowhere else', () => {
  assert.equal(formTarget('https://app.example/cb?x=1'), 'https://app.example')
  assert.equal(formTarget('http://127.0.0.1:8123/cb'), 'http://127.0.0.1:8123')
  assert.equal(formTarget('com.example.app:/cb'), 'com.example.app:')
  assert.equal(formTarget('http://[::1]:8123/cb'), 'http:', 'there is no source expression for IPv6')
  assert.equal(formTarget("https://x.example/;script-src 'unsafe-inline'"), 'https://x.example')
  assert.equal(formTarget('nothing'), undefined)
})
