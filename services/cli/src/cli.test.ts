import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { chmod, readFile, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { Readable } from 'node:stream'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { contract, FINDING_SUBJECT, parseAddress } from '@tollward/contracts'
import { CallObservedSchema, Direction, FlowObservedSchema, FlowSchema, Outcome } from '@tollward/contracts/sensor'
import { eventually, freePort, requires } from '@tollward/testkit'
import { runCommand } from './program.ts'
import { CLIENT_SECRET, HASH, INVITATION, MADE_PASSWORD, startTestStack, type TestStack } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server'] })
const ROOT = resolve(import.meta.dirname, '../../..')
const BIN = join(ROOT, 'services/cli/bin/tollward.mjs')

const PLAN = `apiVersion: tollward.dev/v1
kind: Plan
metadata: { name: orders }
spec: { priceSats: 1000, requests: 10, confirmations: 1, payWithin: 15m, confirmWithin: 2h }
`
const CLIENT = `apiVersion: tollward.dev/v1
kind: Client
metadata: { name: shop }
spec: { grants: [client_credentials], scopes: [orders] }
`

const POLICY = `apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: NAME }
spec:
  hosts: [api.example]
  rules: RULES
`

let stack: TestStack

before(async () => {
  if (skip === false) stack = await startTestStack()
})
after(async () => {
  await stack?.[Symbol.asyncDispose]()
})

interface Run {
  code: number
  out: string
  err: string
}

/** Runs one command as the process would, and gives what it wrote. */
async function tollward(argv: string[], { stdin = '', operatorFile = stack.operatorFile } = {}): Promise<Run> {
  const run: Run = { code: -1, out: '', err: '' }
  run.code = await runCommand(argv, {
    out: (text) => {
      run.out += text
    },
    err: (text) => {
      run.err += text
    },
    stdin: Readable.from([stdin]),
    operatorFile,
    signal: new AbortController().signal,
  })
  return run
}

/** What a command that must succeed says in JSON. */
async function jsonOf(argv: string[], options?: { stdin?: string }) {
  const { code, out, err } = await tollward([...argv, '-o', 'json'], options)
  assert.deepEqual({ code, err }, { code: 0, err: '' })
  return JSON.parse(out)
}

test('the status succeeds when all that can run is ready, shows what is off, and can wait', { skip }, async () => {
  const up = await tollward(['status'])
  assert.deepEqual(up, {
    code: 0,
    err: '',
    out: 'NAME         STATE  DETAIL\ngateway      ready  -\nnode-sensor  off    needs root\n',
  })
  stack.ready = false
  const down = await tollward(['status', '-o', 'json'])
  assert.equal(down.code, 1)
  assert.deepEqual(JSON.parse(down.out), [
    { name: 'gateway', state: 'not-ready', detail: 'is starting' },
    { name: 'node-sensor', state: 'off', detail: 'needs root' },
  ])
  assert.equal((await tollward(['status', '--wait', '1s'])).code, 1)
  const waiting = tollward(['status', '--wait'])
  const asked = stack.scopes.length
  await eventually(() => stack.scopes.length > asked, { what: 'the waiting status asked once' })
  stack.ready = true
  assert.equal((await waiting).code, 0)
})

test('without a stack or credential one sentence says so, and the exit code is 1', { skip }, async () => {
  const missing = await tollward(['status'], { operatorFile: join(stack.directory, 'nothing.json') })
  assert.equal(missing.code, 1)
  assert.match(missing.err, /^tollward: There is no operator credential at .*nothing\.json: .*npm start.*\n$/)

  const operator = JSON.parse(await readFile(stack.operatorFile, 'utf8'))
  const withOperator = async (change: object) => {
    const operatorFile = join(stack.directory, 'other.json')
    await writeFile(operatorFile, JSON.stringify({ ...operator, ...change }), { mode: 0o600 })
    return await tollward(['blocks'], { operatorFile })
  }
  const closed = `127.0.0.1:${await freePort()}`
  const cases: [object, RegExp][] = [
    [{ issuer: `http://${closed}` }, /^tollward: auth-issuer at .* does not answer; is the stack running\?.*\n$/],
    [{ adminApi: closed }, /^tollward: admin-api does not answer; is the stack running\?.*\n$/],
    [{ adminApi: 'example.com:9090' }, /^tollward: adminApi is example.com:9090, which needs TLS.*\n$/],
    [{ clientSecret: 'wrong' }, /^tollward: auth-issuer gives this operator no token \(invalid_client\)\.\n$/],
    [
      { clientSecret: undefined },
      /^tollward: .*other\.json is not JSON with issuer, adminApi, clientId and clientSecret\.\n$/,
    ],
  ]
  for (const [change, sentence] of cases) {
    const run = await withOperator(change)
    assert.match(run.err, sentence)
    assert.equal(run.code, 1)
  }
  await chmod(stack.operatorFile, 0o644)
  const open = await tollward(['status'])
  await chmod(stack.operatorFile, 0o600)
  assert.deepEqual([open.code, open.out], [1, ''])
  assert.match(open.err, /can be read by others; run: chmod 600/)
})

test('documents go in from a file or the standard input, come back as written, and can be deleted', {
  skip,
}, async () => {
  const file = join(stack.directory, 'plan.yaml')
  await writeFile(file, PLAN)
  assert.deepEqual(await tollward(['apply', '-f', file]), { code: 0, out: 'Plan/orders created\n', err: '' })
  const changed = await tollward(['apply', '-f', '-'], { stdin: `${PLAN.replace('1000', '2000')}---\n${CLIENT}` })
  assert.equal(
    changed.out,
    `Plan/orders replaced\nClient/shop created\n  client secret, shown this once: ${CLIENT_SECRET}\n`,
  )
  assert.equal((await tollward(['get', 'plans', 'orders'])).out, PLAN.replace('1000', '2000'))
  const [plan] = await jsonOf(['get', 'Plan'])
  assert.deepEqual(Object.keys(plan), ['kind', 'name', 'appliedBy', 'appliedAt', 'yaml'])
  assert.deepEqual(await jsonOf(['apply', '-f', file]), [{ kind: 'Plan', name: 'orders', change: 'replaced' }])
  assert.deepEqual(await jsonOf(['delete', 'plan', 'orders']), { kind: 'Plan', name: 'orders', deleted: true })
  const gone = await tollward(['get', 'Plan', 'orders'])
  assert.deepEqual(gone, { code: 1, out: '', err: 'tollward: There is no Plan/orders.\n' })
})

test('faults of a document are printed as file:line: path: reason', { skip }, async () => {
  const file = join(stack.directory, 'bad.yaml')
  await writeFile(file, `${PLAN.replace('1000', '1')}---\nkind: Plans\n`)
  const { code, out, err } = await tollward(['apply', '-f', file])
  assert.deepEqual([code, out], [1, ''])
  assert.equal(
    err,
    `${file}:4: spec.priceSats: must be at least 546\n${file}:6: kind: is no kind of document; did you mean Plan?\n`,
  )
  assert.match(
    (await tollward(['apply', '-f', join(stack.directory, 'no.yaml')])).err,
    /^tollward: .*no\.yaml cannot be read\.\n$/,
  )
})

test('clients are listed, those of documents and those that registered; secrets are replaced, with a token good for that only', {
  skip,
}, async () => {
  await tollward(['apply', '-f', '-'], { stdin: CLIENT })
  const listed = await tollward(['clients', '-o', 'json'])
  assert.deepEqual([listed.code, listed.err], [0, 'tollward: 3 older registered clients are left out\n'])
  const [client, registered] = JSON.parse(listed.out)
  assert.deepEqual([client.name, client.grants, client.scopes], ['shop', ['client_credentials'], ['orders']])
  assert.deepEqual([client.origin, registered.origin, registered.name], ['document', 'self-registered', 'r1'])
  assert.equal(stack.scopes.at(-1), 'tollward.read')
  assert.equal((await tollward(['clients', 'secret', 'shop'])).out, `${CLIENT_SECRET}\n`)
  assert.equal(stack.scopes.at(-1), 'tollward.admin')
  assert.equal((await tollward(['clients', 'remove', 'r1'])).out, 'r1 is removed\n')
  assert.match((await tollward(['clients', 'remove', 'shop'])).out, /no registered client.*delete Client shop/)
})

test('who is invited to register clients gets a token that is shown once, with its bounds', { skip }, async () => {
  const options = ['--ttl', '90s', '--registrations', '3', '--scope', 'a', '--scope', 'b']
  const { token, registrationsMax } = await jsonOf(['clients', 'invite', ...options])
  assert.deepEqual([token, registrationsMax], [INVITATION, 3])
  assert.equal(stack.asked.at(-1), 'createInitialAccessToken 90 3 a,b')
  assert.match((await tollward(['clients', 'invite'])).out, new RegExp(`shown this once: ${INVITATION}\n`))
  assert.equal(stack.asked.at(-1), 'createInitialAccessToken 3600 1 ')
})

test('tokens are revoked one by one, or all of a client, a person or a grant', { skip }, async () => {
  const cases: [string[], string][] = [
    [['--hash', HASH], `tokenHash ${HASH}`],
    [['--grant', HASH], `grantHash ${HASH}`],
    [['--client', 'shop'], 'clientId shop'],
    [['--user', 'ada'], 'subject subject-of-ada'],
    [['--stdin'], 'token tok3n'],
  ]
  for (const [options, asked] of cases) {
    assert.deepEqual(await jsonOf(['tokens', 'revoke', ...options], { stdin: 'tok3n\n' }), { revoked: true })
    assert.equal(stack.asked.at(-1), `revoke ${asked}`)
  }
  assert.match((await tollward(['tokens', 'revoke'])).err, /--client NAME, --user NAME, --grant SHA256.* --stdin/)
  assert.match((await tollward(['tokens', 'revoke', '--user', 'nobody'])).err, /^tollward: There is no such user\.\n$/)
  assert.match((await tollward(['tokens', 'revoke', '--client', 'a', '--user', 'b'])).err, /cannot be used with/)
  assert.match((await tollward(['tokens', 'revoke', '--stdin'])).err, /standard input holds no token/)
})

test('a password comes from the standard input, or is made and shown this once; it is never an argument', {
  skip,
}, async () => {
  const made = await tollward(['users', 'create', 'grace'])
  assert.equal(made.out, `user grace created\n  password, shown this once: ${MADE_PASSWORD}\n`)
  assert.equal(stack.asked.at(-1), 'createUser grace ')
  const given = await jsonOf(['users', 'create', 'grace', '--stdin'], { stdin: ' with a space \r\n' })
  assert.deepEqual(Object.keys(given), ['name', 'subject', 'enabled', 'createdAt'])
  assert.equal(stack.asked.at(-1), 'createUser grace  with a space ')
  assert.equal((await jsonOf(['users', 'password', 'ADA'])).password, MADE_PASSWORD)
  assert.equal(stack.asked.at(-1), 'setPassword ada ')
  assert.deepEqual(await jsonOf(['users', 'password', 'ada', '--stdin'], { stdin: 'secret' }), {
    user: 'ada',
    changed: true,
  })
  assert.match((await tollward(['users', 'create', 'x', '--stdin'])).err, /standard input holds no password/)
  const refused = await tollward(['users', 'password', 'ada', 'my-secret'])
  assert.equal(refused.code, 1)
  assert.doesNotMatch(refused.err, /my-secret/)
})

test('people are listed, kept out, let in again and forgotten', { skip }, async () => {
  const [ada] = await jsonOf(['users'])
  assert.deepEqual([ada.name, ada.subject, ada.enabled], ['ada', 'subject-of-ada', true])
  assert.equal((await tollward(['users', 'disable', 'ada'])).out, 'user ada disabled\n')
  assert.deepEqual(await jsonOf(['users', 'enable', 'ada']), { user: 'ada', enabled: true })
  assert.deepEqual(await jsonOf(['users', 'delete', 'ada']), { user: 'ada', deleted: true })
  const asked = ['setUserEnabled ada false', 'setUserEnabled ada true', 'deleteUser ada']
  assert.deepEqual(stack.asked.slice(-3), asked)
  assert.match((await tollward(['users', 'delete', 'nobody'])).err, /^tollward: There is no such user\.\n$/)
})

test('sessions and grants are shown with the names of their people, and ended', { skip }, async () => {
  const rows = await jsonOf(['sessions'])
  assert.deepEqual(
    rows.map((row: { user: string; clients: string[] }) => [row.user, row.clients]),
    [
      ['ada', ['shop', 'mail']],
      ['of-nobody-any-more', []],
    ],
  )
  assert.equal((await jsonOf(['sessions', 'list', '--user', 'ada'])).length, 1)
  assert.deepEqual(await jsonOf(['sessions', 'end', HASH]), { sessionHash: HASH, ended: true })
  assert.equal((await tollward(['sessions', 'end', 'cd'])).out, 'there is no such session\n')
  const [grant] = await jsonOf(['grants', 'list', '--user', 'ada', '--client', 'shop'])
  assert.deepEqual([grant.grantHash, grant.user, grant.client], [HASH, 'ada', 'shop'])
  assert.equal(stack.asked.at(-1), 'listGrants subject-of-ada shop')
  assert.deepEqual(await jsonOf(['grants', 'revoke', HASH]), { grantHash: HASH, revoked: true })
  assert.equal(stack.asked.at(-1), `revoke grantHash ${HASH}`)
})

test('keys are shown with what they do now, and rotated', { skip }, async () => {
  const states = async (argv: string[]) =>
    (await jsonOf(argv)).map(({ kid, state }: { kid: string; state: string }) => [kid, state])
  assert.deepEqual(await states(['keys']), [
    ['old', 'retired'],
    ['now', 'signs'],
  ])
  assert.deepEqual(await states(['keys', 'rotate']), [
    ['now', 'signs'],
    ['next', 'published'],
  ])
})

test('payments are read page by page, the newest shown, all of them exported as CSV that runs nothing', {
  skip,
}, async () => {
  const newest = await jsonOf(['payments', '--limit', '2'])
  assert.deepEqual(
    newest.map(({ vout }: { vout: number }) => vout),
    [2, 3],
  )
  const { code, out } = await tollward(['payments', 'export', '--csv', '--client', 'shop'])
  assert.equal(code, 0)
  const lines = out.trimEnd().split('\r\n')
  const [head, ...rows] = lines.map((line) => line.split(','))
  assert.deepEqual(head?.slice(0, 4), ['txid', 'vout', 'amountSats', 'state'])
  const plan = head?.indexOf('plan') ?? -1
  assert.deepEqual(
    rows.map((row) => [row[1], row[2], row[head?.indexOf('clientId') ?? -1], row[plan]]),
    [1, 2, 3].map((number) => [`${number}`, `${number}00`, 'shop', "'=1+1"]),
  )
  assert.match((await tollward(['payments', 'export'])).err, /--csv/)
  assert.equal((await jsonOf(['payments', 'books'])).receivedSats, 600)
})

test('a reconciliation goes on to the tip, shows sums and differences, and succeeds only without any', {
  skip,
}, async () => {
  const whole = await tollward(['payments', 'reconcile'])
  assert.deepEqual([whole.code, whole.err], [0, ''])
  assert.match(whole.out, /^blocks +0 to 3\nchainSats +600\nledgerSats +600\nreceivedSats +600\nboughtSats +600\n/)
  assert.match(whole.out, /\nevery satoshi is accounted for\n$/)
  const lacking = await tollward(['payments', 'reconcile', '--from', '1'])
  assert.deepEqual([lacking.code, lacking.err], [1, ''])
  assert.match(lacking.out, /^KIND .*\nmissing-in-ledger {2}abab/)
  assert.match(lacking.out, /\nnot every satoshi is accounted for\n$/)
})

test('credit is given for money found, and taken by a negative number; nonsense is refused before anything is asked', {
  skip,
}, async () => {
  assert.deepEqual(
    (await jsonOf(['payments', 'credits'])).map(({ balanceSats }: { balanceSats: number }) => balanceSats),
    [-5],
  )
  const credit = (...argv: string[]) => tollward(['payments', 'credit', ...argv])
  const given = await credit('shop', '700', '--reason', 'lost', '--for', `${HASH}:3`)
  assert.deepEqual(given, { code: 0, err: '', out: 'shop has 700 sats in credit\n' })
  assert.equal(stack.asked.at(-1), `adjustCredit shop 700 lost operator ${HASH}:3 36`)
  assert.equal((await credit('shop', '-20', '--reason', 'spent')).code, 0)
  assert.equal(stack.asked.at(-1), 'adjustCredit shop -20 spent operator :0 36')
  const before = stack.asked.length
  for (const argv of [['shop', '0'], ['shop', '1.5'], ['shop', '1', '--for', 'x'], ['shop', '1'], ['shop']])
    assert.equal((await credit(...argv, ...(argv.length === 2 && argv[1] === '1' ? [] : ['--reason', 'r']))).code, 1)
  assert.equal(stack.asked.length, before)
})

test("conduct is shown with its reasons, and an operator's word counts for a while, for good, or no more", {
  skip,
}, async () => {
  const [row] = await jsonOf(['conduct', '--client', 'shop'])
  assert.deepEqual([row.score, row.violations, row.paidSats, row.reasons], [700, 2, 9, ['Paid.']])
  const override = (...argv: string[]) => tollward(['conduct', 'override', 'shop', ...argv])
  assert.equal((await override('950', '--reason', 'known', '--until', '30d')).out, 'shop has a score of 950\n')
  assert.equal(stack.asked.at(-1), 'overrideConduct shop 950 for a while known')
  await override('0', '--reason', 'abuse')
  assert.equal(stack.asked.at(-1), 'overrideConduct shop 0 for good abuse')
  assert.equal((await tollward(['conduct', 'lift', 'shop', '--reason', 'over'])).out, 'shop has a score of 700\n')
  assert.equal(stack.asked.at(-1), 'overrideConduct shop undefined for good over')
  for (const argv of [['1001', '--reason', 'r'], ['500']]) assert.equal((await override(...argv)).code, 1)
})

test('a source is blocked for a while, shown, and let through again', { skip }, async () => {
  const block = await jsonOf(['blocks', 'add', '198.51.100.0/24', '--ttl', '90s', '--reason', 'test'])
  assert.deepEqual([block.cidr, block.decidedBy, block.reason], ['198.51.100.0/24', 'operator:operator', 'test'])
  const [listed] = await jsonOf(['blocks', 'list'])
  assert.deepEqual(listed, block)
  assert.match((await tollward(['blocks'])).out, /^BLOCKED +EXPIRES AT +DECIDED BY +REASON\n198\.51\.100\.0\/24 /)
  assert.equal((await tollward(['blocks', 'remove', '198.51.100.0/24'])).out, '198.51.100.0/24 is let through again\n')
  assert.deepEqual(await jsonOf(['blocks', 'remove', '198.51.100.0/24']), { cidr: '198.51.100.0/24', removed: false })
  assert.match(
    (await tollward(['blocks', 'add', '127.0.0.1', '--ttl', '60s'])).err,
    /^tollward: 127\.0\.0\.1 is not blocked: .*guarded/,
  )
  assert.match((await tollward(['blocks', 'add', '198.51.100.1', '--ttl', 'long'])).err, /such as 60s/)
})

test('a caller is blocked by what its tokens say, a token by its hash however it is given', { skip }, async () => {
  const add = (whom: string) => jsonOf(['blocks', 'add', whom, '--ttl', '90s', '--reason', 'test'])
  const raw = 'a-raw-token'
  const hashed = `token:${createHash('sha256').update(raw).digest('hex')}`
  for (const [given, named] of [
    ['client:shop', 'client:shop'],
    ['subject:ada lovelace', 'subject:ada lovelace'],
    [`grant:${HASH}`, `grant:${HASH}`],
    [hashed, hashed],
    [`token:${raw}`, hashed],
  ] as const) {
    const block = await add(given)
    assert.deepEqual([block.caller, block.cidr, block.decidedBy], [named, undefined, 'operator:operator'])
    assert.deepEqual(await jsonOf(['blocks', 'list']), [block])
    assert.ok((await tollward(['blocks'])).out.includes(`\n${named}`))
    const removed = await tollward(['blocks', 'remove', given])
    assert.equal(removed.out, `${named} is let through again\n`)
    assert.deepEqual(await jsonOf(['blocks', 'remove', given]), { caller: named, removed: false })
  }
  assert.ok(!stack.adminApi.lines.some((line) => line.includes(raw)))
  for (const whom of ['client:', 'grant:abc', 'token:']) {
    const refused = await tollward(['blocks', 'add', whom, '--ttl', '90s'])
    assert.deepEqual([refused.code, /names no/.test(refused.err)], [1, true], whom)
  }
  assert.match((await tollward(['blocks', 'add', 'client:operator', '--ttl', '90s'])).err, /nobody blocks themselves/)
})

test('conflicts are warnings of an apply, rows of its JSON, and with --strict a reason to apply nothing', {
  skip,
}, async () => {
  const open = POLICY.replace('NAME', 'open').replace('RULES', '[{ name: a, match: { path: /c }, anonymous: true }]')
  const shut = POLICY.replace('NAME', 'shut').replace(
    'RULES',
    '[{ name: a, match: { path: /c }, deny: { reason: No. } }]',
  )
  assert.deepEqual(await tollward(['apply', '-f', '-', '--strict'], { stdin: open }), {
    ...{ code: 0, out: 'ApiPolicy/open created\n', err: '' },
  })
  const dry = await tollward(['apply', '-f', '-', '--dry-run'], { stdin: shut })
  assert.deepEqual([dry.code, dry.out], [0, 'ApiPolicy/shut would be created\n'])
  assert.match(dry.err, /^warning: At api\.example: Rules shut\/a and open\/a match the same requests.*\n$/)
  const strict = await tollward(['apply', '-f', '-', '--strict'], { stdin: shut })
  assert.equal(strict.code, 1)
  assert.match(
    strict.err,
    /^warning: .*\ntollward: nothing is applied, because policies would speak against each other\n$/,
  )
  assert.equal(
    (await jsonOf(['get', 'ApiPolicy'])).some(({ name }: { name: string }) => name === 'shut'),
    false,
  )
  const [applied, conflict] = await jsonOf(['apply', '-f', '-'], { stdin: shut })
  assert.deepEqual([applied.change, conflict.kind, conflict.winner], ['created', 'PolicyConflict', 'shut/a'])
  const row = await jsonOf(['simulate', '--request', 'GET http://api.example/c'])
  assert.deepEqual([row.reason, row.rule, row.candidates[0].rule], ['token-missing', 'shut/a', 'open/a'])
  for (const name of ['open', 'shut']) await tollward(['delete', 'ApiPolicy', name])
  const missing = await jsonOf(['simulate', '--request', 'GET http://api.example/c', '--client', 'shop'])
  assert.deepEqual([missing.reason, missing.rule], ['no-rule', undefined])
  assert.equal(stack.scopes.at(-1), 'tollward.read')
})

test('alerts are shown without what a terminal would act on, and whole as JSON', { skip }, async () => {
  const finding = {
    finding_info: { title: 'flood \u001b[31mfrom\u009b 127.0.0.66' },
    disposition: 'Blocked',
    message: 'm',
  }
  await stack.bus.publishBytes(`${FINDING_SUBJECT}.high`, Buffer.from(JSON.stringify(finding)))
  const { out } = await tollward(['alerts'])
  assert.match(out, /high +flood {1,2}\[31mfrom +127\.0\.0\.66 +Blocked +m/)
  const [alert] = await jsonOf(['alerts', '--limit', '1', '--since', '1h'])
  assert.deepEqual([alert.severity, alert.finding], ['high', finding])
})

test('a decision is explained field by field', { skip }, async () => {
  const time = Date.now().toString(16).padStart(12, '0')
  const decisionId = `${time.slice(0, 8)}-${time.slice(8)}-7abc-8def-0123456789ab`
  const address = parseAddress('127.0.0.66') ?? new Uint8Array()
  const call = {
    decisionId,
    source: 'gateway',
    status: 402,
    outcome: Outcome.REFUSED,
    reason: 'payment-required',
    address,
    ...{ method: 'GET', host: 'api.example', path: "/it's", clientId: 'shop', rule: 'explained/paid' },
    ...{ principal: 'spiffe://example.org/ns/a/sa/b', limit: 'client', count: 3 },
    stages: [
      { name: 'policy', micros: 12 },
      { name: 'payment', micros: 1500, asked: true },
    ],
  }
  await tollward(['apply', '-f', '-'], {
    stdin: POLICY.replace('NAME', 'explained').replace(
      'RULES',
      '[{ name: paid, match: { path: /a }, anonymous: true }]',
    ),
  })
  await stack.bus.publish(contract(CallObservedSchema), create(CallObservedSchema, call), { key: 'gateway' })
  const row = await jsonOf(['explain', decisionId])
  assert.deepEqual([row.outcome, row.status, row.address], ['refused', 402, '127.0.0.66'])
  assert.deepEqual([row.stages[1], row.count], [{ name: 'payment', micros: 1500, asked: true }, 3])
  assert.equal(row.ruleNow.match.path, '/a')
  const { out } = await tollward(['explain', decisionId])
  assert.match(out, /^reason +payment-required$/m)
  assert.match(out, /^principal +spiffe:/m)
  assert.match(out, /^standsFor +this one and 2 more like it of the same source$/m)
  assert.match(out, /^ {2}policy +12 µs\n {2}payment +1500 µs, asked somebody else$/m)
  assert.match(out, /^next +The client has no pass that is good: npx --no tollward passes --client shop\.$/m)
  assert.match(
    out,
    /^tryAgain +npx --no tollward simulate --request 'GET https:\/\/api\.example\/it'\\''s' --from 127\.0\.0\.66 --client 'shop'$/m,
  )
  assert.match((await tollward(['explain', 'x'])).err, /^tollward: A decision id is .*\n$/)
  const folded = await tollward(['explain', decisionId.replace(/b$/, 'c')])
  assert.match(folded.err, /^tollward: Nothing is kept of that decision: .*Have the request repeated, or ask .*\.\n$/)
})

test('flows come a line of JSON each until Ctrl-C, through the command as it is installed', { skip }, async () => {
  const env = { PATH: process.env.PATH, TOLLWARD_OPERATOR_FILE: stack.operatorFile }
  const child = spawn(process.execPath, [BIN, 'flows', '-f', '-o', 'json'], {
    env,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let out = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    out += text
  })
  const source = parseAddress('127.0.0.66') ?? new Uint8Array()
  const destination = parseAddress('2001:db8::1') ?? new Uint8Array()
  const flow = create(FlowSchema, {
    ...{ source, destination, sourcePort: 4000, destinationPort: 8080, protocol: 6, packets: 3n, bytes: 180n },
    ...{ direction: Direction.INGRESS, interface: 'lo', lastSeenAt: timestampFromMs(0) },
  })
  await eventually(
    async () => {
      const batch = create(FlowObservedSchema, { node: 'n1', flows: [flow] })
      await stack.bus.publish(contract(FlowObservedSchema), batch, { key: 'n1' })
      return out.includes('\n')
    },
    { what: 'a flow was printed' },
  )
  const row = JSON.parse(out.split('\n')[0] ?? '')
  assert.deepEqual([row.source, row.destination, row.packets], ['127.0.0.66:4000', '[2001:db8::1]:8080', 3])
  child.kill('SIGINT')
  assert.deepEqual(await once(child, 'exit'), [0, null])
})

test('npx runs the command of the clone, and its exit code and words come through', { skip }, async () => {
  const env = { ...process.env, TOLLWARD_OPERATOR_FILE: join(stack.directory, 'nothing.json') }
  const options = { cwd: ROOT, env }
  await assert.rejects(
    promisify(execFile)('npx', ['--no', 'tollward', 'status'], options),
    (error: { code: number; stderr: string }) => {
      assert.equal(error.code, 1)
      assert.match(error.stderr, /There is no operator credential/)
      assert.doesNotMatch(error.stderr, /^ +at /m)
      return true
    },
  )
  const help = await promisify(execFile)('npx', ['--no', 'tollward', 'help'], options)
  for (const command of [
    'status',
    'apply',
    'get',
    'delete',
    'clients',
    'tokens',
    'keys',
    'users',
    'sessions',
    'grants',
    'invoices',
    'passes',
    'blocks',
    'alerts',
    'flows',
    'apis',
    'explain',
    'simulate',
    'policy',
    'regtest',
  ]) {
    assert.match(help.stdout, new RegExp(`^  ${command}\\b`, 'm'))
  }
})
