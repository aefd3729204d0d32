import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { type TokenInfo, TokenInfoSchema } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { eventually } from '@tollward/testkit'
import { Registry } from 'prom-client'
import { introspectorMetrics } from '../metrics.ts'
import { FEED_SILENCE_MAX_MS, openLookup } from './lookup.ts'

const TOKEN = 'T'.repeat(43)
const HASH = hash('sha256', TOKEN, 'hex')

const active = (clientId = 'client') =>
  create(TokenInfoSchema, {
    active: true,
    clientId,
    tokenHash: HASH,
    expiresAt: timestampFromMs(Date.now() + 600_000),
    internalTokenExpiresAt: timestampFromMs(Date.now() + 60_000),
  })
const inactive = () => create(TokenInfoSchema)

/** A lookup whose issuer answers when the test lets it. */
function lookupOf() {
  const registry = new Registry()
  const questions: PromiseWithResolvers<TokenInfo>[] = []
  const feed = { silentForMs: 0 }
  const lookup = openLookup({
    issuer: {
      exchange: async () => {
        const question = Promise.withResolvers<TokenInfo>()
        questions.push(question)
        return { $typeName: 'tollward.token.v1.ExchangeResponse', info: await question.promise }
      },
    },
    feedSilentForMs: () => feed.silentForMs,
    metrics: introspectorMetrics(registry),
  })
  const nextQuestion = (number: number) =>
    eventually(() => questions[number - 1], { what: `question ${number}`, timeoutMs: 2000, intervalMs: 1 })
  return { lookup, questions, nextQuestion, feed, registry }
}

test('an answer that a revocation overtook is thrown away and the issuer is asked again', async () => {
  for (const revoke of ['tokenRevoked', 'clientRevoked'] as const) {
    const { lookup, questions, nextQuestion } = lookupOf()
    const answer = lookup.introspect(TOKEN)
    const first = await nextQuestion(1)
    if (revoke === 'tokenRevoked') lookup.tokenRevoked(HASH)
    else lookup.clientRevoked('client')
    first.resolve(active())
    ;(await nextQuestion(2)).resolve(inactive())
    assert.equal((await answer).active, false)
    assert.equal(questions.length, 2)
  }
})

test('many questions about one token at once are one question to the issuer, and then none', async () => {
  const { lookup, questions, nextQuestion } = lookupOf()
  const answers = Array.from({ length: 50 }, () => lookup.introspect(TOKEN))
  const question = await nextQuestion(1)
  assert.equal(questions.length, 1)
  question.resolve(active())
  for (const info of await Promise.all(answers)) assert.equal(info.active, true)
  assert.equal((await lookup.introspect(TOKEN)).active, true)
  assert.equal(questions.length, 1)
})

test('an inactive token is not remembered', async () => {
  const { lookup, questions, nextQuestion } = lookupOf()
  for (const number of [1, 2]) {
    const answer = lookup.introspect(TOKEN)
    ;(await nextQuestion(number)).resolve(inactive())
    assert.equal((await answer).active, false)
  }
  assert.equal(questions.length, 2)
})

test('a failed question fails everybody who waited, and is asked anew by the next', async () => {
  const { lookup, nextQuestion } = lookupOf()
  const answers = [lookup.introspect(TOKEN), lookup.introspect(TOKEN)]
  ;(await nextQuestion(1)).reject(new AppError('unavailable', 'no'))
  for (const answer of answers) await assert.rejects(answer, { code: 'unavailable' })
  const again = lookup.introspect(TOKEN)
  ;(await nextQuestion(2)).resolve(active())
  assert.equal((await again).active, true)
})

test('while the feed is silent the issuer is asked every time, and without its answer there is none', async () => {
  const { lookup, questions, nextQuestion, feed } = lookupOf()
  const warm = lookup.introspect(TOKEN)
  ;(await nextQuestion(1)).resolve(active())
  assert.equal((await warm).active, true)

  feed.silentForMs = FEED_SILENCE_MAX_MS + 1
  const revokedMeanwhile = lookup.introspect(TOKEN)
  ;(await nextQuestion(2)).resolve(inactive())
  assert.equal((await revokedMeanwhile).active, false)
  const unreachable = lookup.introspect(TOKEN)
  ;(await nextQuestion(3)).reject(new AppError('unavailable', 'no'))
  await assert.rejects(unreachable, { code: 'unavailable' })

  lookup.checkFeed()
  feed.silentForMs = 0
  const afterwards = lookup.introspect(TOKEN)
  ;(await nextQuestion(4)).resolve(inactive())
  assert.equal((await afterwards).active, false, 'what was remembered before the silence is not used after it')
  assert.equal(questions.length, 4)
})

test('an answer that comes while the feed is silent is not remembered', async () => {
  const { lookup, nextQuestion, feed, questions } = lookupOf()
  const answer = lookup.introspect(TOKEN)
  const question = await nextQuestion(1)
  feed.silentForMs = FEED_SILENCE_MAX_MS + 1
  question.resolve(active())
  assert.equal((await answer).active, true)
  feed.silentForMs = 0
  const again = lookup.introspect(TOKEN)
  ;(await nextQuestion(2)).resolve(inactive())
  assert.equal((await again).active, false)
  assert.equal(questions.length, 2)
})

test('what cannot be a token is not asked about', async () => {
  const { lookup, questions } = lookupOf()
  for (const text of ['', 'x', 'a b'.repeat(20), 'a'.repeat(5000)]) {
    assert.equal((await lookup.introspect(text)).active, false)
  }
  assert.equal(questions.length, 0)
})
