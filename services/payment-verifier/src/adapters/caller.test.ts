import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { IntrospectResponseSchema, type TokenInfoSchema } from '@tollward/contracts/token'
import { openPossession } from '@tollward/decision'
import { newProofKey } from '@tollward/decision/testing'
import { callerCheck } from './caller.ts'
import { Problem } from './problem.ts'

const PUBLIC_URL = 'https://pay.example/buy'
const INVOICES = `${PUBLIC_URL}/invoices`

/** A check among tokens of which each is worth what is said here. */
function checkOf(tokens: Record<string, MessageInitShape<typeof TokenInfoSchema>>) {
  const introspect = async ({ token = '' }) =>
    create(IntrospectResponseSchema, { info: { clientId: 'c', ...(tokens[token] ?? { active: false }) } })
  const check = callerCheck({ introspector: { introspect }, possession: openPossession(), publicUrl: PUBLIC_URL })
  return (authorization: string | undefined, proof?: string, method = 'POST') => {
    const rawHeaders = [
      ...(authorization === undefined ? [] : ['Authorization', authorization]),
      ...(proof === undefined ? [] : ['DPoP', proof]),
    ]
    return check({ method, target: '/invoices', rawHeaders })
  }
}

const refusedAs = (type: string, challenge: RegExp) => (error: unknown) => {
  assert.ok(error instanceof Problem)
  assert.deepEqual([error.type, error.meaning.http], [type, 401])
  assert.match(error.extras.challenge ?? '', challenge)
  return true
}

test('a bearer token is taken as before, and what is none is refused with a challenge', async () => {
  const ask = checkOf({ plain: { active: true } })
  assert.equal((await ask('Bearer plain')).clientId, 'c')
  for (const authorization of [undefined, 'Basic YTpi', 'Bearer a, Bearer b', `Bearer ${'x'.repeat(5000)}`]) {
    await assert.rejects(ask(authorization), refusedAs('token-missing', /^Bearer realm.*DPoP realm/))
  }
  for (const authorization of ['Bearer unknown', 'Bearer "x"', 'DPoP plain']) {
    await assert.rejects(ask(authorization), refusedAs('token-invalid', /^Bearer .*error="invalid_token"/))
  }
})

test('a token that is bound to a DPoP key needs a proof for this very request, once', async () => {
  const [key, thief] = [await newProofKey(), await newProofKey()]
  const ask = checkOf({ bound: { active: true, confirmation: { method: { case: 'jkt', value: key.thumbprint } } } })
  const proof = await key.proof('bound', INVOICES, 'POST')
  assert.equal((await ask('DPoP bound', proof)).clientId, 'c')
  const wrong = [
    proof,
    await thief.proof('bound', INVOICES, 'POST'),
    await key.proof('other', INVOICES, 'POST'),
    await key.proof('bound', INVOICES, 'GET'),
    await key.proof('bound', 'https://pay.example/invoices', 'POST'),
  ]
  for (const each of wrong) {
    await assert.rejects(ask('DPoP bound', each), refusedAs('proof-invalid', /^DPoP .*error="invalid_dpop_proof"/))
  }
  await assert.rejects(ask('Bearer bound'), refusedAs('proof-missing', /^DPoP .*error="invalid_token"/))
})

test('a token that is bound to a client certificate is refused, since there are none here', async () => {
  const ask = checkOf({ bound: { active: true, confirmation: { method: { case: 'x5tS256', value: 'thumbprint' } } } })
  await assert.rejects(ask('Bearer bound'), refusedAs('proof-missing', /^Bearer .*error="invalid_token"/))
})
