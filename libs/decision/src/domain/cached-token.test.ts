import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { TokenInfoSchema } from '@tollward/contracts/token'
import { INTERNAL_TOKEN_LEFT_MIN_MS } from '../edges.ts'
import { CachedTokens } from './cached-token.ts'

const END = 1_800_000_000_000
const CLAIMS = { tenant: 't', roles: ['a'] }
const JWT = ['{"alg":"none"}', JSON.stringify(CLAIMS), 's']
  .map((part) => Buffer.from(part).toString('base64url'))
  .join('.')

type Answer = MessageInitShape<typeof TokenInfoSchema>

function info(answer: Answer = {}) {
  return create(TokenInfoSchema, {
    ...{ active: true, clientId: 'app', subject: 'ada', grantHash: 'g', scopes: ['orders', 'profile'] },
    ...{ audience: ['https://api.example'], internalToken: JWT },
    ...{ expiresAt: timestampFromMs(END), internalTokenExpiresAt: timestampFromMs(END) },
    ...answer,
  })
}

function cached(answer?: Answer, made = new CachedTokens()) {
  const token = made.of(info(answer), 'hash')
  assert(token)
  return token
}

test('a token in memory says what its answer said', () => {
  const token = cached()
  const { hash, clientId, subject, grantHash, scopes, audience, selfRegistered, binding } = token
  assert.deepEqual(
    { hash, clientId, subject, grantHash, scopes: [...scopes], audience, selfRegistered, binding },
    {
      ...{ hash: 'hash', clientId: 'app', subject: 'ada', grantHash: 'g', scopes: ['orders', 'profile'] },
      ...{ audience: ['https://api.example'], selfRegistered: false, binding: undefined },
    },
  )
  assert.deepEqual(token.claims(), CLAIMS)
  assert.deepEqual(token.identity, [
    ['authorization', `Bearer ${JWT}`],
    ['x-tollward-client', 'app'],
    ['x-tollward-subject', 'ada'],
    ['x-tollward-scopes', 'orders profile'],
  ])
  assert.deepEqual(token.tags, ['client app', 'subject ada', 'grant g'])
  assert.deepEqual(cached({ subject: 'app', grantHash: '' }).tags, ['client app'])
})

test('a token is used until it ends itself, and until its internal token would be over before a request is upstream', () => {
  const ends = (ownMs: number, internalMs: number) =>
    cached({ expiresAt: timestampFromMs(ownMs), internalTokenExpiresAt: timestampFromMs(internalMs) }).usableUntilMs
  assert.equal(ends(END, END + INTERNAL_TOKEN_LEFT_MIN_MS), END)
  assert.equal(ends(END, END), END - INTERNAL_TOKEN_LEFT_MIN_MS)
})

test('tokens share what they have in common, and only that', () => {
  const made = new CachedTokens()
  const token = cached({}, made)
  const other = cached({ subject: 'bob', grantHash: 'h' }, made)
  assert.equal(other.scopes, token.scopes)
  assert.equal(other.audience, token.audience)
  const differing: Answer[] = [
    { clientId: 'other' },
    { scopes: ['orders'] },
    { scopes: ['orders profile'] },
    { scopes: [], audience: ['orders', 'profile'] },
    { audience: [] },
    { selfRegistered: true },
  ]
  for (const answer of differing) {
    const alone = cached(answer)
    const { clientId, scopes, audience, selfRegistered } = cached(answer, made)
    assert.deepEqual(
      { clientId, scopes, audience, selfRegistered },
      {
        clientId: alone.clientId,
        scopes: alone.scopes,
        audience: alone.audience,
        selfRegistered: alone.selfRegistered,
      },
    )
  }
})

test('what tokens share is bounded, and tokens keep what they have', () => {
  const made = new CachedTokens(1)
  const first = cached({}, made)
  const others = ['b', 'c'].map((clientId) => cached({ clientId }, made))
  assert.deepEqual(
    [first, ...others].map(({ clientId }) => clientId),
    ['app', 'b', 'c'],
  )
  assert.notEqual(cached({}, made).scopes, first.scopes, 'the oldest is forgotten')
})

test('a token that is not active, or lacks what makes it usable, is none', () => {
  const lacking: Answer[] = [
    ...[{ active: false }, { clientId: '' }, { internalToken: '' }],
    ...[{ expiresAt: undefined }, { internalTokenExpiresAt: undefined }],
  ]
  for (const answer of lacking) assert.equal(new CachedTokens().of(info(answer), 'hash'), undefined)
})
