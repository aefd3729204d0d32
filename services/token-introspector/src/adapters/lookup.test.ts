import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { type TokenInfo, TokenInfoSchema } from '@tollward/contracts/token'
import { INTROSPECTOR_STALE_AFTER_MS } from '@tollward/decision'
import { AppError } from '@tollward/errors'
import { eventually } from '@tollward/testkit'
import { Registry } from 'prom-client'
import { usableUntilMs } from '../domain/usable.ts'
import { introspectorMetrics } from '../metrics.ts'
import { openLookup } from './lookup.ts'

const TOKEN = 'T'.repeat(43)
const HASH = hash('sha256', TOKEN, 'hex')

const JWT = `${'h'.repeat(20)}.${'p'.repeat(20)}.${'s'.repeat(20)}`

const active = () =>
  create(TokenInfoSchema, {
    active: true,
    clientId: 'client',
    subject: 'person',
    grantHash: 'granted',
    tokenHash: HASH,
    expiresAt: timestampFromMs(Date.now() + 600_000),
    internalToken: 'internal',
    internalTokenExpiresAt: timestampFromMs(Date.now() + 60_000),
  })
const told = () => create(TokenInfoSchema, { ...active(), internalToken: '' })
const inactive = () => create(TokenInfoSchema)

/** A lookup whose issuer answers when the test lets it. */
function lookupOf() {
  const registry = new Registry()
  const questions: (PromiseWithResolvers<TokenInfo> & {
    acceptInternal: boolean
    withoutInternalToken: boolean
    pastCache: boolean
  })[] = []
  const feed = { silentForMs: 0 }
  const lookup = openLookup({
    issuer: {
      exchange: async ({ acceptInternal = false, withoutInternalToken = false, pastCache = false }) => {
        const question = { ...Promise.withResolvers<TokenInfo>(), acceptInternal, withoutInternalToken, pastCache }
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

/** Everything that an answer about the token depends on. */
const DEPENDENCIES = [HASH, 'client client', 'grant granted', 'subject person']

test('an answer that a revocation overtook is thrown away and the issuer is asked again', async () => {
  for (const dependency of DEPENDENCIES) {
    const { lookup, questions, nextQuestion } = lookupOf()
    const answer = lookup.introspect(TOKEN)
    const first = await nextQuestion(1)
    lookup.forget(dependency)
    first.resolve(active())
    ;(await nextQuestion(2)).resolve(inactive())
    assert.equal((await answer).active, false, dependency)
    assert.equal(questions.length, 2)
  }
})

test('what is revoked is not answered from the cache any more, and what is not goes on', async () => {
  for (const dependency of DEPENDENCIES) {
    const { lookup, questions, nextQuestion } = lookupOf()
    const answer = lookup.introspect(TOKEN)
    ;(await nextQuestion(1)).resolve(active())
    assert.equal((await answer).active, true)
    lookup.forget('client other')
    assert.equal((await lookup.introspect(TOKEN)).active, true)
    assert.equal(questions.length, 1)
    lookup.forget(dependency)
    const again = lookup.introspect(TOKEN)
    ;(await nextQuestion(2)).resolve(inactive())
    assert.equal((await again).active, false, dependency)
  }
})

test('an answer of what was just revoked or changed counts only if the issuer read it at its source', async () => {
  for (const dependency of DEPENDENCIES.slice(1)) {
    const { lookup, questions, nextQuestion } = lookupOf()
    lookup.forget(dependency)
    const answer = lookup.introspect(TOKEN)
    const first = await nextQuestion(1)
    assert.equal(first.pastCache, false)
    // By what the issuer had heard of the client before.
    first.resolve(active())
    const second = await nextQuestion(2)
    assert.equal(second.pastCache, true)
    second.resolve(inactive())
    assert.equal((await answer).active, false, dependency)
    assert.equal(questions.length, 2)
  }
})

test('whoever asks past the cache gets an answer that was asked for after the question came', async () => {
  const { lookup, questions, nextQuestion } = lookupOf()
  const early = lookup.introspect(TOKEN)
  const first = await nextQuestion(1)
  const past = lookup.introspect(TOKEN, { pastCache: true })
  const second = await nextQuestion(2)
  assert.equal(second.pastCache, true)
  second.resolve(inactive())
  first.resolve(active())
  assert.equal((await early).active, true)
  assert.equal((await past).active, false)
  const pastAgain = lookup.introspect(TOKEN, { pastCache: true })
  ;(await nextQuestion(3)).resolve(inactive())
  assert.equal((await pastAgain).active, false, 'although it is in the cache')
  assert.equal(questions.length, 3)
})

test('an internal token is known only to those who ask about any token, and is not remembered', async () => {
  const { lookup, questions, nextQuestion } = lookupOf()
  for (const number of [1, 2]) {
    const answer = lookup.tell(JWT)
    const question = await nextQuestion(number)
    assert.equal(question.acceptInternal, true)
    question.resolve(active())
    assert.equal((await answer).active, true)
  }
  const presented = lookup.introspect(JWT)
  const question = await nextQuestion(3)
  assert.equal(question.acceptInternal, false)
  question.resolve(inactive())
  assert.equal((await presented).active, false)
  const opaque = lookup.tell(TOKEN)
  const ordinary = await nextQuestion(4)
  assert.equal(ordinary.acceptInternal, false)
  ordinary.resolve(active())
  assert.equal((await opaque).active, true)
  assert.equal((await lookup.introspect(TOKEN)).active, true)
  assert.equal(questions.length, 4)
})

test('who only tells of a token needs no internal token, and who passes a request on gets one', async () => {
  const { lookup, questions, nextQuestion } = lookupOf()
  const telling = lookup.tell(TOKEN)
  const first = await nextQuestion(1)
  assert.equal(first.withoutInternalToken, true)
  first.resolve(told())
  assert.equal((await telling).active, true)
  assert.equal((await lookup.tell(TOKEN)).active, true)
  assert.equal(questions.length, 1)
  const passing = lookup.introspect(TOKEN)
  const second = await nextQuestion(2)
  assert.equal(second.withoutInternalToken, false)
  second.resolve(active())
  assert.equal((await passing).internalToken, 'internal')
  assert.equal((await lookup.introspect(TOKEN)).internalToken, 'internal')
  assert.equal((await lookup.tell(TOKEN)).active, true)
  assert.equal(questions.length, 2)
})

test('an answer about an internal token that a revocation overtook is asked for again', async () => {
  const { lookup, nextQuestion } = lookupOf()
  const answer = lookup.tell(JWT)
  const first = await nextQuestion(1)
  lookup.forget(HASH)
  first.resolve(active())
  ;(await nextQuestion(2)).resolve(inactive())
  assert.equal((await answer).active, false)
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
  for (const answer of answers) await assert.rejects(Promise.resolve(answer), { code: 'unavailable' })
  const again = lookup.introspect(TOKEN)
  ;(await nextQuestion(2)).resolve(active())
  assert.equal((await again).active, true)
})

test('while the feed is silent the issuer is asked every time, and without its answer there is none', async () => {
  const { lookup, questions, nextQuestion, feed } = lookupOf()
  const warm = lookup.introspect(TOKEN)
  ;(await nextQuestion(1)).resolve(active())
  assert.equal((await warm).active, true)

  feed.silentForMs = INTROSPECTOR_STALE_AFTER_MS + 1
  const revokedMeanwhile = lookup.introspect(TOKEN)
  ;(await nextQuestion(2)).resolve(inactive())
  assert.equal((await revokedMeanwhile).active, false)
  const unreachable = lookup.introspect(TOKEN)
  ;(await nextQuestion(3)).reject(new AppError('unavailable', 'no'))
  await assert.rejects(Promise.resolve(unreachable), { code: 'unavailable' })

  // What was missed is heard before the feed counts as heard again.
  lookup.forget(HASH)
  feed.silentForMs = 0
  const afterwards = lookup.introspect(TOKEN)
  ;(await nextQuestion(4)).resolve(inactive())
  assert.equal((await afterwards).active, false)
  assert.equal(questions.length, 4)
})

test('an entry is used until its internal token has 15 seconds left, or the access token ends', () => {
  const [nowMs, minuteMs] = [1_800_000_000_000, 60_000]
  const until = (lifeMs: number, internalLifeMs?: number) => {
    const internalTokenExpiresAtMs = internalLifeMs === undefined ? undefined : nowMs + internalLifeMs
    return usableUntilMs({ expiresAtMs: nowMs + lifeMs, internalTokenExpiresAtMs }, nowMs) - nowMs
  }
  assert.equal(until(10 * minuteMs, minuteMs), 45_000)
  assert.equal(until(5000, 5000), 5000)
  assert.equal(until(10 * minuteMs), 45_000)
  assert.equal(until(5000), 5000)
})

test('what cannot be a token is not asked about', async () => {
  const { lookup, questions } = lookupOf()
  for (const text of ['', 'x', 'a b'.repeat(20), 'a'.repeat(5000)]) {
    assert.equal((await lookup.introspect(text)).active, false)
  }
  assert.equal(questions.length, 0)
})
