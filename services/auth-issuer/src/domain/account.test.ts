import assert from 'node:assert/strict'
import { test } from 'node:test'
import { accountName, foldedName } from './account.ts'

test('a name is what people call themselves, in one normal form', () => {
  for (const name of ['alice', 'Åsa Öberg', "o'neill", 'a.b+c@example.com', '田中', 'x']) {
    assert.equal(accountName(name), name.normalize('NFKC'))
  }
  assert.equal(accountName('  Ａlice '), 'Alice', 'full-width letters and spaces around are no other name')
})

test('what could be mistaken for something else is no name', () => {
  const refused = ['', ' ', '@', 'a\nb', 'a\u0000', 'a/b', '<b>', 'a\u202eb', '-a', 'a-', 'a'.repeat(129)]
  for (const name of refused) {
    assert.throws(() => accountName(name), { code: 'invalid_argument' }, JSON.stringify(name))
  }
})

test('two spellings of one name are one', () => {
  assert.equal(foldedName('ALICE@Example.com'), foldedName('alice@example.com'))
  assert.equal(foldedName('A\u030angstro\u0308m'), foldedName('\u00c5NGSTR\u00d6M'))
  assert.notEqual(foldedName('alice'), foldedName('alicf'))
})
