import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { enterOwnNetwork, eventually, requires, startProcess } from '@tollward/testkit'
import { ROOT } from '../checks/copy.ts'
import { API, FOR_PEOPLE, tokensOf } from '../conformance/code-flow.ts'
import { Person } from '../conformance/person.ts'
import { LOCAL } from '../scenario/customer.ts'
import { send } from '../scenario/http.ts'
import { type LocalStack, programs, startLocalStack } from './local-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
const isRoot = process.getuid?.() === 0
if (isRoot) enterOwnNetwork()

let stack: LocalStack
before(async () => {
  if (skip === false) stack = await startLocalStack()
})
after(() => stack?.[Symbol.asyncDispose]())

test('the whole tour runs twice on one stack, each step as it says', { skip }, async () => {
  for (const time of ['first', 'second']) {
    const demo = await startProcess(process.execPath, [join(ROOT, 'test/demo/main.ts')], {
      cwd: ROOT,
      env: { ...process.env, TOLLWARD_OPERATOR_FILE: stack.operatorFile, TOLLWARD_STATE: stack.state },
    })
    assert.equal(await demo.exited, 0, `the ${time} tour failed:\n${demo.lines.slice(-40).join('\n')}`)
  }
})

test('malformed input gets a clear refusal, no stack trace, and harms nobody', { skip }, async () => {
  const customer = await stack.customer('malformed')
  const attempts = {
    'no bearer': await send(`${LOCAL.gateway}/orders`, { headers: { authorization: 'Basic x' } }),
    'token of odd bytes': await send(`${LOCAL.gateway}/orders`, { headers: { authorization: 'Bearer a b' } }),
    'two tokens': await send(`${LOCAL.gateway}/orders`, { headers: { authorization: 'Bearer a, Bearer b' } }),
    'huge token': await send(`${LOCAL.gateway}/orders`, { headers: { authorization: `Bearer ${'a'.repeat(9000)}` } }),
    'short txid': await customer.call(`${LOCAL.gateway}/orders`, { headers: { 'x-bitcoin-txid': 'abc' } }),
    'txid of other letters': await customer.call(`${LOCAL.gateway}/orders`, {
      headers: { 'x-bitcoin-txid': 'z'.repeat(64) },
    }),
    'dots in the path': await customer.call(`${LOCAL.gateway}/public/..%2forders`),
    'oversized body': await customer
      .call(`${LOCAL.gateway}/public`, { method: 'POST', body: 'x'.repeat(11 * 1024 * 1024) })
      .catch(() => undefined),
    'invoice of nonsense': await send(`${LOCAL.verifier}/invoices`, {
      method: 'POST',
      headers: { authorization: `Bearer ${customer.token}`, 'content-type': 'application/json' },
      body: '{"plan":',
    }),
    'invoice for no plan': await send(`${LOCAL.verifier}/invoices`, {
      method: 'POST',
      headers: { authorization: `Bearer ${customer.token}`, 'content-type': 'application/json' },
      body: '{"plan":"none"}',
    }),
    'token request of nonsense': await send(`${LOCAL.issuer}/token`, { method: 'POST', body: 'grant_type=%%%' }),
    'discovery, posted': await send(`${LOCAL.issuer}/.well-known/openid-configuration`, { method: 'POST', body: 'x' }),
  }
  for (const [what, answer] of Object.entries(attempts)) {
    if (answer === undefined) continue
    assert.ok(answer.status >= 400 && answer.status < 500, `${what}: ${answer.status} ${answer.body}`)
    assert.doesNotMatch(answer.body, /\bat .+:\d+:\d+|node_modules|\.ts\b/, `${what} shows a stack trace`)
  }
  assert.equal((await customer.call(`${LOCAL.gateway}/echo`)).status, 200)
})

test('a document with faults is refused whole, with file, line and path of each, and what was in force stays', {
  skip,
}, async () => {
  const faulty =
    'apiVersion: tollward.dev/v1\nkind: Plan\nmetadata: { name: orders }\nspec: { priceSats: -1, confirmations: none, payWithin: 15m }\n'
  await assert.rejects(stack.tollward(['apply', '-f', '-'], faulty), (error: { stderr?: string; code?: number }) => {
    assert.match(error.stderr ?? '', /4.*spec\.priceSats/)
    assert.match(error.stderr ?? '', /spec\.confirmations/)
    assert.match(error.stderr ?? '', /spec\.confirmWithin/)
    assert.doesNotMatch(error.stderr ?? '', /node_modules/)
    return error.code === 1
  })
  const { body } = await send(`${LOCAL.verifier}/plans`)
  assert.equal((JSON.parse(body) as { plans: { priceSats: string }[] }).plans[0]?.priceSats, '10000')
})

test('a person signs in and lets a client act; ending the grant, disabling and a new password each end what is open', {
  skip,
}, async () => {
  const { tollward } = stack
  const made = await tollward<{ subject: string; password: string }>(['users', 'create', 'Ada'])
  const ada = new Person('ada', made.subject, made.password, LOCAL.issuer)
  const spec = JSON.stringify({ ...FOR_PEOPLE, audience: [API] })
  const document = `apiVersion: tollward.dev/v1\nkind: Client\nmetadata: { name: app }\nspec: ${spec}\n`
  const [client] = await tollward<{ clientSecret: string }[]>(['apply', '-f', '-'], document)
  const app = { clientId: 'app', secret: client?.clientSecret }
  const signIn = () => tokensOf({ issuerUrl: LOCAL.issuer }, ada, app)
  const echo = (token: string) => send(`${LOCAL.gateway}/echo`, { headers: { authorization: `Bearer ${token}` } })
  const open = () =>
    Promise.all(
      ['sessions', 'grants'].map(async (what) => (await tollward<unknown[]>([what, 'list', '--user', 'ada'])).length),
    )

  const first = await signIn()
  const seen = await echo(first.accessToken)
  assert.equal(seen.status, 200, seen.body)
  assert.equal(JSON.parse(seen.body).headers['x-tollward-subject'], made.subject)
  const [grant] = await tollward<{ grantHash: string; user: string; client: string }[]>(['grants', '--client', 'app'])
  assert.deepEqual([grant?.user, grant?.client], ['Ada', 'app'])
  assert.deepEqual(await tollward(['grants', 'revoke', grant?.grantHash ?? '']), {
    grantHash: grant?.grantHash,
    revoked: true,
  })
  assert.equal((await echo(first.accessToken)).status, 401)
  assert.deepEqual(await open(), [1, 0])

  const second = await signIn()
  assert.equal((await echo(second.accessToken)).status, 200)
  await tollward(['users', 'disable', made.subject])
  assert.equal((await echo(second.accessToken)).status, 401)
  assert.deepEqual(await open(), [0, 0])
  await assert.rejects(signIn())

  await tollward(['users', 'enable', 'ada'])
  const third = await signIn()
  assert.equal((await echo(third.accessToken)).status, 200)
  const [session] = await tollward<{ sessionHash: string }[]>(['sessions'])
  assert.equal((await tollward<{ ended: boolean }>(['sessions', 'end', session?.sessionHash ?? ''])).ended, true)
  assert.equal((await echo(third.accessToken)).status, 200, 'signing out ended what a client was let do')
  await tollward(['users', 'password', 'ada', '--stdin'], 'another pass phrase of hers\n')
  assert.equal((await echo(third.accessToken)).status, 401)
  await tollward(['users', 'delete', 'ada'])
  await assert.rejects(open(), /no such user/)
})

test('an orderly end leaves no process and no kernel program behind', { skip }, async () => {
  assert.ok(programs(stack.state).length > 10)
  assert.equal(await stack.stop(), 0)
  await eventually(() => programs(stack.state).length === 0, { what: 'every program to end' })
  assert(existsSync(join(ROOT, '.tollward/compile-cache')), 'compiled modules are kept for the next start')
  if (isRoot) {
    assert.doesNotMatch(execFileSync('ip', ['link', 'show', 'lo'], { encoding: 'utf8' }), /xdp/)
    assert.doesNotMatch(execFileSync('tc', ['qdisc', 'show', 'dev', 'lo'], { encoding: 'utf8' }), /clsact/)
  }
})
