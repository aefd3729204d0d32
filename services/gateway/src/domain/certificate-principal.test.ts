import assert from 'node:assert/strict'
import { test } from 'node:test'
import { certificatePrincipal } from './certificate-principal.ts'

test('a certificate names its first URI, else its first DNS name, else its subject', () => {
  const subject = 'C=CH\nO=Shop\\, Ltd\nCN=web'
  const names: [string | undefined, string][] = [
    ['DNS:a.example, URI:spiffe://example.org/ns/shop/sa/web, URI:spiffe://b/c', 'spiffe://example.org/ns/shop/sa/web'],
    ['IP Address:192.0.2.1, DNS:a.example, DNS:b.example', 'a.example'],
    ['IP Address:192.0.2.1', 'CN=web,O=Shop\\, Ltd,C=CH'],
    [undefined, 'CN=web,O=Shop\\, Ltd,C=CH'],
  ]
  for (const [subjectAltName, principal] of names)
    assert.equal(certificatePrincipal({ subjectAltName, subject }), principal)
  assert.equal(certificatePrincipal({ subject: '' }), undefined)
})

test('a name with a comma in it is one name and no other', () => {
  const subjectAltName = 'DNS:"a, URI:spiffe://example.org/ns/shop/sa/admin", DNS:b'
  assert.equal(certificatePrincipal({ subjectAltName, subject: '' }), 'a, URI:spiffe://example.org/ns/shop/sa/admin')
})
