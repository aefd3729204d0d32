import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isSubject, parseName } from './distinguished-name.ts'

test('a subject is the expected one however RFC 4514 lets it be written', () => {
  const subject = 'C=CH\nO=Müller \\+ Söhne\\, Ltd\nOU=Sales + CN=orders'
  for (const expected of [
    'CN=orders+OU=Sales,O=Müller \\+ Söhne\\, Ltd,C=CH',
    'cn=orders + ou=Sales, O=M\\C3\\BCller \\2B S\\C3\\B6hne\\2C Ltd, C=CH',
    'OU=Sales+CN=orders,O=Müller \\+ Söhne\\, Ltd,C=CH',
  ]) {
    assert.equal(isSubject(subject, expected), true, expected)
  }
})

test('a subject that has more, less, another order or another case is another one', () => {
  const subject = 'O=Shop\nCN=orders'
  assert.equal(isSubject(subject, 'CN=orders,O=Shop'), true)
  for (const expected of [
    '',
    'CN=orders',
    'O=Shop',
    'O=Shop,CN=orders',
    'CN=orders+O=Shop',
    'CN=Orders,O=Shop',
    'CN=orders,O=Shop,C=CH',
    'CN=orders ,O=Shop\\ ',
    'CN=orders,O=Shop,',
    'CN=*,O=Shop',
    'CN=orders\\,O=Shop',
  ]) {
    assert.equal(isSubject(subject, expected), false, expected)
  }
  assert.equal(isSubject(undefined, 'CN=orders'), false)
})

test('nothing inside a value makes two names of one', () => {
  // As Node shows a common name that was made to look like more: separators and control characters are escaped.
  for (const value of ['orders\\,O=Shop', 'orders\\0AO=Shop', 'orders \\+ O=Shop']) {
    assert.equal(isSubject(`CN=${value}`, 'CN=orders,O=Shop'), false)
    assert.equal(isSubject(`CN=${value}`, 'O=Shop,CN=orders'), false)
    assert.equal(isSubject(`CN=${value}`, 'CN=orders+O=Shop'), false)
    assert.equal(isSubject(`CN=${value}`, `CN=${value}`), true)
  }
})

test('text that is no name is none', () => {
  for (const text of ['', '=x', 'CN', 'CN=a,,O=b', 'CN=a,', 'CN=a\\', '1=x', ',CN=a']) {
    assert.equal(parseName(text), undefined, text)
  }
  assert.deepEqual(parseName('2.5.4.3=a\\20'), [[['2.5.4.3', 'a ']]])
  assert.deepEqual(parseName('CN=a  '), [[['CN', 'a']]])
})
