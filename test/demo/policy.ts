import assert from 'node:assert/strict'
import { type Customer, LOCAL } from '../scenario/customer.ts'
import { problemOf, type Tour, until } from './tour.ts'

/** A host of its own: what is tried here concerns nobody else. */
const HOST = 'tour.example'
const NAME = 'tour'
const ECHO = `${LOCAL.gateway}/echo`
const AT_HOST = { headers: { host: HOST } }

const POLICY = `apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: ${NAME} }
spec:
  hosts: [${HOST}]
  rules:
    - { name: echo, match: { methods: [GET], path: /echo }, require: { token: { scopes: [audit] } } }
`

interface Simulated {
  readonly outcome: string
  readonly status: number
  readonly reason: string
  readonly rule: string
  readonly problem: Readonly<Record<string, unknown>>
}

interface Explained {
  readonly reason: string
  readonly rule: string
  readonly next: string
  readonly stages: readonly { readonly name: string; readonly micros: number; readonly asked: boolean }[]
}

/** A policy is tried before it holds, holds as it was tried, and says why it refused; a caller is blocked and let through. */
export async function explainAndBlock(tour: Tour, customer: Customer): Promise<void> {
  let simulated: Simulated | undefined
  await tour.step('A rule is tried before it is in force: nothing is sent, and nothing changes', async () => {
    // What an earlier tour that was cut off has left.
    if ((await customer.quiet().call(ECHO, AT_HOST)).status !== 200) await forget(tour)
    const asked = ['--request', `GET http://${HOST}/echo`, '--client', customer.clientId, '--scope', 'orders']
    simulated = await tour.tollward<Simulated>(['simulate', '-f', '-', ...asked], POLICY)
    tour.say(`${simulated.outcome}: ${simulated.status} ${simulated.reason}, by the rule ${simulated.rule}`)
    assert.deepEqual([simulated.status, simulated.reason], [403, 'scope-missing'])
    await until(
      'the request to be let through',
      async () => (await customer.quiet().call(ECHO, AT_HOST)).status === 200,
    )
  })

  let decision = ''
  await tour.step('It is applied, and the request gets exactly what was foretold', async () => {
    await tour.tollward(['apply', '-f', '-'], POLICY)
    await until('the rule to hold', async () => (await customer.quiet().call(ECHO, AT_HOST)).status === 403)
    const refused = await customer.call(ECHO, AT_HOST)
    assert.equal(refused.status, simulated?.status)
    const { decision: id, ...problem } = JSON.parse(refused.body) as Record<string, unknown>
    const { decision: _, ...foretold } = simulated?.problem ?? {}
    assert.deepEqual(problem, foretold)
    decision = String(id)
  })

  await tour.step('Why was that refused? The id in the answer says it', async () => {
    const explained = await until('the decision to be recorded', () =>
      tour.tollward<Explained>(['explain', decision]).catch(() => undefined),
    )
    const { reason, rule, stages, next } = explained
    tour.say(`${reason}, by ${rule}: ${stages.map(({ name, micros }) => `${name} ${micros} µs`).join(', ')}`)
    tour.say(next)
    assert.deepEqual([reason, rule], ['scope-missing', `${NAME}/echo`])
    assert.ok(stages.some(({ name }) => name === 'policy'))
    await forget(tour)
  })

  await tour.step('An operator blocks the client, wherever it comes from; its next request is refused', async () => {
    assert.equal((await customer.call(ECHO)).status, 200)
    await tour.tollward(['blocks', 'add', `client:${customer.clientId}`, '--ttl', '60s', '--reason', 'demo'])
    await until('the refusal', async () => (await customer.quiet().call(ECHO)).status === 403)
    assert.equal(problemOf(await customer.call(ECHO)), 'caller-blocked')
    await tour.tollward(['blocks', 'remove', `client:${customer.clientId}`])
    await until('the client to be let through', async () => (await customer.quiet().call(ECHO)).status === 200)
  })
}

async function forget(tour: Tour): Promise<void> {
  await tour.tollward(['delete', 'ApiPolicy', NAME])
}
