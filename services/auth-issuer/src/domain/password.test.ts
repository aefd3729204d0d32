import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  canonicalPassword,
  formatPasswordHash,
  isMadeWith,
  PASSWORD_BYTES_MAX,
  parsePasswordHash,
  passwordFault,
  SCRYPT_PARAMETERS,
} from './password.ts'

test('a password has 12 characters at least, counted as people count them, and 1024 bytes at most', () => {
  assert.match(passwordFault('eleven char') ?? '', /at least 12/)
  assert.equal(passwordFault('twelve chars'), undefined)
  assert.match(passwordFault('😀'.repeat(11)) ?? '', /at least 12/, 'not by UTF-16 units')
  assert.equal(passwordFault('😀'.repeat(12)), undefined)
  assert.equal(passwordFault('a'.repeat(PASSWORD_BYTES_MAX)), undefined)
  assert.match(passwordFault('é'.repeat(513)) ?? '', /at most 1024/, 'not by characters')
})

test('the same password typed on another keyboard is the same', () => {
  assert.equal(canonicalPassword('caf\u0065\u0301 au lait'), canonicalPassword('café au lait'))
  assert.equal(canonicalPassword('ｐａｓｓ'), 'pass')
})

test('a hash is written in the PHC string format and read again', () => {
  fc.assert(
    fc.property(
      fc.record({
        ln: fc.integer({ min: 1, max: 20 }),
        r: fc.integer({ min: 1, max: 32 }),
        p: fc.integer({ min: 1, max: 16 }),
      }),
      fc.uint8Array({ minLength: 16, maxLength: 32 }),
      fc.uint8Array({ minLength: 32, maxLength: 64 }),
      (parameters, salt, hash) => {
        const text = formatPasswordHash({ parameters, salt, hash })
        assert.match(text, /^\$scrypt\$ln=\d+,r=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+$/)
        const read = parsePasswordHash(text)
        assert(read)
        assert.deepEqual(read.parameters, { ...parameters })
        assert.deepEqual([...read.salt], [...salt])
        assert.deepEqual([...read.hash], [...hash])
      },
    ),
  )
})

test('a value that would take all memory to check, or is none, is not checked', () => {
  const tail = `$${'A'.repeat(22)}$${'A'.repeat(43)}`
  for (const head of [
    '$scrypt$ln=25,r=8,p=1',
    '$scrypt$ln=17,r=99,p=1',
    '$scrypt$ln=17,r=8,p=99',
    '$scrypt$ln=0,r=8,p=1',
  ]) {
    assert.equal(parsePasswordHash(head + tail), undefined, head)
  }
  assert.equal(parsePasswordHash(''), undefined)
  assert.equal(parsePasswordHash('$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA'), undefined)
})

test('a hash that was made with other parameters is known', () => {
  const made = parsePasswordHash(`$scrypt$ln=16,r=8,p=1$${'A'.repeat(22)}$${'A'.repeat(43)}`)
  assert(made)
  assert.equal(isMadeWith(made, SCRYPT_PARAMETERS), false)
  assert.equal(isMadeWith({ ...made, parameters: { ln: 17, r: 8, p: 1 } }, SCRYPT_PARAMETERS), true)
})
