import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { create, fromBinary } from '@bufbuild/protobuf'
import { timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt'
import { Client, credentials, status } from '@grpc/grpc-js'
import { bucketContract, contract, FINDING_SUBJECT, rangeKey } from '@tollward/contracts'
import { ActionPerformedSchema, AdminService, Change, ServiceState } from '@tollward/contracts/admin'
import { Severity } from '@tollward/contracts/detection'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { BlockSchema } from '@tollward/contracts/enforcement'
import { type GrpcClient, grpcClient, grpcDefinition } from '@tollward/contracts/grpc'
import { ConductService, PassSchema, TreasuryService, VerifierService } from '@tollward/contracts/payment'
import { CallObservedSchema, FlowObservedSchema } from '@tollward/contracts/sensor'
import { documentKey } from '@tollward/documents'
import { AppError } from '@tollward/errors'
import { eventually, requires } from '@tollward/testkit'
import {
  CLIENT_SECRET,
  INVITATION,
  MADE_PASSWORD,
  OPERATOR,
  READER,
  startTestStack,
  type TestStack,
  WRITER,
} from './test-stack.ts'

const skip = await requires({ tools: ['nats-server'] })
const AS_OPERATOR = { metadata: OPERATOR, timeoutMs: 20_000 }
const AS_WRITER = { metadata: WRITER, timeoutMs: 20_000 }
const AS_READER = { metadata: READER, timeoutMs: 20_000 }

let stack: TestStack
let admin: GrpcClient<typeof AdminService>

before(async () => {
  if (skip !== false) return
  stack = await startTestStack()
  admin = grpcClient(AdminService, stack.address, credentials.createInsecure())
})
after(async () => {
  admin?.[Symbol.dispose]()
  await stack?.[Symbol.asyncDispose]()
})

const planOf = (name: string, sats = 1000) => `apiVersion: tollward.dev/v1
kind: Plan
metadata: { name: ${name} }
spec: { priceSats: ${sats}, requests: 10, confirmations: 1, payWithin: 15m, confirmWithin: 2h }
`
const policyOf = (name: string, plan: string) => `apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: ${name} }
spec:
  hosts: ["*"]
  rules: [{ name: a, match: { path: /a }, require: { token: {}, payment: { plan: ${plan} } } }]
`
const clientOf = (name: string, scope = 'orders') => `apiVersion: tollward.dev/v1
kind: Client
metadata: { name: ${name} }
spec: { grants: [client_credentials], scopes: [${scope}] }
`
const apply = (yaml: string, fileName = 'f.yaml') => admin.apply({ yaml, fileName }, AS_OPERATOR)
const clientWith = (name: string, more: string) => clientOf(name).replace(/ \}\n$/, `, ${more} }\n`)
const storedNames = async (kind: string) => {
  return (await admin.listDocuments({ kind }, AS_READER)).documents.map(({ name }) => name)
}

/** What was audited of an action, oldest first. */
async function audited(action: string) {
  const { subject, stream } = contract(ActionPerformedSchema)
  const letters = await stack.bus.history(stream, subject, { sinceMs: Date.now() - 600_000, limit: 1000 })
  return letters
    .map(({ bytes }) => fromBinary(ActionPerformedSchema, bytes))
    .filter((record) => record.action === action)
}

test('without a token that is valid here nothing is answered', { skip }, async () => {
  const wrong: (Record<string, string> | undefined)[] = [
    undefined,
    { authorization: 'Basic b3BlcmF0b3I6eA==' },
    { authorization: 'Bearer ' },
    { authorization: 'Bearer unknown' },
    { authorization: 'Bearer api-token' },
    { authorization: `Bearer ${'x'.repeat(1000)}` },
  ]
  for (const metadata of wrong) {
    const options = metadata ? { metadata, timeoutMs: 5000 } : { timeoutMs: 5000 }
    await assert.rejects(admin.getStatus({}, options), { code: status.UNAUTHENTICATED })
    await assert.rejects(admin.addBlock({ cidr: '198.51.100.1', ttlSeconds: 60 }, options), {
      code: status.UNAUTHENTICATED,
    })
    await assert.rejects(Array.fromAsync(admin.watchFlows({}, options)), { code: status.UNAUTHENTICATED })
  }
})

/** By their names, so that a new method is held to it without anybody thinking of it. */
const READS = /^(get|list|watch|explain|reconcile)[A-Z]/

test('what changes something needs the one scope, what only reads the other, and no method is without', {
  skip,
}, async () => {
  for (const { localName, name, methodKind } of AdminService.methods) {
    if (methodKind !== 'unary') continue
    const method = localName as 'getStatus'
    const isReading = READS.test(localName)
    const [allowed, refused] = isReading ? [AS_READER, AS_WRITER] : [AS_WRITER, AS_READER]
    const before = (await audited(name)).length
    await assert.rejects(admin[method]({}, { timeoutMs: 5000 }), { code: status.UNAUTHENTICATED }, name)
    await assert.rejects(admin[method]({}, refused), { code: status.PERMISSION_DENIED }, name)
    const code = await admin[method]({}, allowed).then(
      () => status.OK,
      (error: { code: status }) => error.code,
    )
    assert.ok(code !== status.PERMISSION_DENIED && code !== status.UNAUTHENTICATED, name)
    const records = (await audited(name)).slice(before).map(({ actor, result }) => [actor, result])
    const expected = [
      ['reader', 'PERMISSION_DENIED'],
      ['writer', status[code]],
    ]
    assert.deepEqual(records, isReading ? [] : expected, `audit of ${name}`)
  }
})

test('a dry run says what an apply would do and what the policies would say against each other, and does nothing', {
  skip,
}, async () => {
  const rules = '[{ name: open, match: { path: /dry }, anonymous: true }]'
  const policy = (name: string, more = rules) =>
    `apiVersion: tollward.dev/v1\nkind: ApiPolicy\nmetadata: { name: ${name} }\nspec:\n  hosts: [dry.example]\n  rules: ${more}\n`
  await apply(policy('dry-first'))
  const audits = (await audited('Apply')).length
  const closed = '[{ name: closed, match: { path: /dry }, deny: { reason: No. } }]'
  const text = `${policy('dry-first')}---\n${policy('dry-second', closed)}`
  const dry = await admin.apply({ yaml: text, fileName: 'f.yaml', dryRun: true }, AS_OPERATOR)
  assert.deepEqual(
    dry.applied.map(({ name, change }) => [name, change]),
    [
      ['dry-first', Change.UNCHANGED],
      ['dry-second', Change.CREATED],
    ],
  )
  const pairs = (conflicts: readonly { winner: string; loser: string }[]) =>
    conflicts.map(({ winner, loser }) => `${winner} ${loser}`)
  assert.deepEqual(pairs(dry.conflicts), ['dry-second/closed dry-first/open'])
  assert.match(dry.conflicts[0]?.detail ?? '', /^At dry\.example: .*Remove one of them\.$/)
  assert.ok(!(await storedNames('ApiPolicy')).includes('dry-second'))
  assert.equal((await audited('Apply')).length, audits, 'a dry run is in the audit')
  await assert.rejects(admin.apply({ yaml: policy('Dry'), fileName: 'f.yaml', dryRun: true }, AS_OPERATOR), {
    code: status.INVALID_ARGUMENT,
  })
  // What is in force counts as well, not only what the text has.
  const applied = await apply(policy('dry-second', closed))
  assert.deepEqual(pairs(applied.conflicts), pairs(dry.conflicts))
  for (const name of ['dry-first', 'dry-second']) await admin.deleteDocument({ kind: 'ApiPolicy', name }, AS_OPERATOR)
})

test('a token that may only read changes nothing, and its attempt is audited', { skip }, async () => {
  await assert.rejects(admin.addBlock({ cidr: '198.51.100.2', ttlSeconds: 60 }, AS_READER), {
    code: status.PERMISSION_DENIED,
  })
  const { blocks } = await admin.listBlocks({}, AS_READER)
  assert.deepEqual(blocks, [])
  const record = (await audited('AddBlock')).at(-1)
  assert.deepEqual([record?.actor, record?.target, record?.result], ['reader', '198.51.100.2', 'PERMISSION_DENIED'])
})

test('applied documents are stored as written; an applied one again is unchanged, and a changed one replaced', {
  skip,
}, async () => {
  const text = `# plan\n${planOf('first')}---\n${policyOf('first', 'first')}`
  const { applied } = await apply(text)
  assert.deepEqual(
    applied.map(({ kind, name, change }) => [kind, name, change]),
    [
      ['Plan', 'first', Change.CREATED],
      ['ApiPolicy', 'first', Change.CREATED],
    ],
  )
  const [stored] = (await admin.listDocuments({ kind: 'Plan', name: 'first' }, AS_READER)).documents
  assert.deepEqual([stored?.yaml, stored?.appliedBy, stored?.format], [`# plan\n${planOf('first')}`, 'operator', 1])
  const again = await apply(`${planOf('first', 2000)}---\n${policyOf('first', 'first')}`)
  assert.deepEqual(
    again.applied.map(({ change }) => change),
    [Change.REPLACED, Change.UNCHANGED],
  )
  const record = (await audited('Apply')).at(-1)
  assert.deepEqual([record?.target, record?.result], ['Plan/first, ApiPolicy/first', 'OK'])
})

test('a text with one fault is refused whole, with file, line and path, and what was in force stays', {
  skip,
}, async () => {
  await apply(planOf('kept'))
  const bad = `${planOf('kept', 7777)}---\n${planOf('never')}---\n${policyOf('never', 'nowhere')}---\n${clientOf('operator')}`
  await assert.rejects(apply(bad, 'dir/bad.yaml'), {
    code: status.INVALID_ARGUMENT,
    details: [
      'dir/bad.yaml:16: spec.rules[0].require.payment.plan: there is no Plan nowhere; apply it first, or in the same text',
      "dir/bad.yaml:20: metadata.name: is the operator's own client; choose another name",
    ].join('\n'),
  })
  await assert.rejects(apply(`${planOf('never')}---\n${clientOf('never', 'tollward.admin')}`), {
    code: status.INVALID_ARGUMENT,
    details: /^f\.yaml:9: spec\.scopes\[0\]: .*operator's alone$/,
  })
  await assert.rejects(apply(`${planOf('kept', 7777)}---\n${planOf('never', 1)}`), {
    code: status.INVALID_ARGUMENT,
    details: 'f.yaml:9: spec.priceSats: must be at least 546',
  })
  const [kept] = (await admin.listDocuments({ kind: 'Plan', name: 'kept' }, AS_READER)).documents
  assert.match(kept?.yaml ?? '', /priceSats: 1000/)
  assert.ok(!(await storedNames('Plan')).includes('never'))
  assert.deepEqual(await storedNames('Client'), [])
  assert.equal((await audited('Apply')).at(-1)?.result, 'INVALID_ARGUMENT')
})

test('when one document cannot be written, those before it are taken back', { skip }, async () => {
  await apply(planOf('before'))
  // Nobody can read this value, and creating over it fails.
  await stack.bus.rawBucket('documents').put(documentKey('ApiPolicy', 'broken'), Uint8Array.of(0xff, 0xff))
  const text = `${planOf('before', 5000)}---\n${planOf('fresh')}---\n${policyOf('broken', 'fresh')}`
  await assert.rejects(apply(text), /ApiPolicy\/broken could not be stored; nothing was applied/)
  const [plan] = (await admin.listDocuments({ kind: 'Plan', name: 'before' }, AS_READER)).documents
  assert.match(plan?.yaml ?? '', /priceSats: 1000/)
  assert.ok(!(await storedNames('Plan')).includes('fresh'))
  await stack.bus.rawBucket('documents').remove(documentKey('ApiPolicy', 'broken'))
})

test("a new client's secret is in the answer to its first apply only, and in no audit record or log", {
  skip,
}, async () => {
  assert.deepEqual(
    (await apply(clientOf('shop'))).applied.map(({ clientSecret }) => clientSecret),
    [CLIENT_SECRET],
  )
  assert.deepEqual(
    (await apply(clientOf('shop'))).applied.map(({ clientSecret }) => clientSecret),
    [''],
  )
  const replaced = await admin.replaceClientSecret({ clientId: 'shop' }, AS_OPERATOR)
  assert.equal(replaced.clientSecret, CLIENT_SECRET)
  assert.deepEqual(stack.asked.slice(-1), ['replaceClientSecret shop false'])
  await admin.revokeTokens({ target: { case: 'token', value: 'tok3n' }, reason: 'leaked' }, AS_OPERATOR)
  const records = [
    ...(await audited('Apply')),
    ...(await audited('ReplaceClientSecret')),
    ...(await audited('RevokeTokens')),
  ]
  const texts = [
    ...records.map((record) => JSON.stringify({ ...record, performedAt: undefined })),
    ...stack.adminApi.lines,
  ]
  assert.ok(texts.some((text) => text.includes('Client/shop')))
  for (const text of texts) assert.doesNotMatch(text, new RegExp(`${CLIENT_SECRET}|tok3n|operator-token`))
  assert.match(records.at(-1)?.target ?? '', /^token [0-9a-f]{64}$/)
})

test('whoever keeps answers about a client is told of each change, and a disabled one loses its tokens', {
  skip,
}, async () => {
  const asked = async (yaml: string) => {
    const before = stack.asked.length
    await apply(yaml)
    return stack.asked.slice(before)
  }
  const secret = 'replaceClientSecret changing true'
  assert.deepEqual(await asked(clientOf('changing')), [secret])
  assert.deepEqual(await asked(clientOf('changing', 'other')), ['noteClientChange changing', secret])
  // An apply that was cut off is made good by the next, which finds nothing changed.
  assert.deepEqual(await asked(clientOf('changing', 'other')), ['noteClientChange changing', secret])
  assert.deepEqual(await asked(clientWith('changing', 'disabled: true')), [
    'noteClientChange changing',
    'revoke clientId changing',
  ])
})

test('a client without a secret is shown none', { skip }, async () => {
  const { applied } = await apply(
    clientWith('by-certificate', 'authentication: tls_client_auth, certificateSubject: CN=a'),
  )
  assert.deepEqual(
    applied.map(({ name, clientSecret }) => [name, clientSecret]),
    [['by-certificate', '']],
  )
})

test('tokens are ended by token, hash, client, grant and person; the audit names a person by subject only', {
  skip,
}, async () => {
  const hash = 'ab'.repeat(32)
  const cases: [NonNullable<Parameters<typeof admin.revokeTokens>[0]['target']>, string, RegExp][] = [
    [{ case: 'token', value: 'tok3n' }, 'token tok3n', /^token [0-9a-f]{64}$/],
    [{ case: 'tokenHash', value: hash }, `tokenHash ${hash}`, /^token (ab){32}$/],
    [{ case: 'clientId', value: 'shop' }, 'clientId shop', /^tokens of Client\/shop$/],
    [{ case: 'grantHash', value: hash }, `grantHash ${hash}`, /^grant (ab){32}$/],
    [{ case: 'user', value: 'ada' }, 'subject subject-of-ada', /^tokens of user subject-of-ada$/],
    // A subject is meant before somebody who is called so.
    [{ case: 'user', value: 'subject-of-ada' }, 'subject subject-of-ada', /^tokens of user subject-of-ada$/],
  ]
  for (const [target, asked, named] of cases) {
    assert.equal((await admin.revokeTokens({ target }, AS_OPERATOR)).revoked, true)
    assert.equal(stack.asked.at(-1), `revoke ${asked}`)
    assert.match((await audited('RevokeTokens')).at(-1)?.target ?? '', named)
  }
  await assert.rejects(admin.revokeTokens({ target: { case: 'user', value: 'nobody' } }, AS_OPERATOR), {
    code: status.NOT_FOUND,
  })
  assert.match((await audited('RevokeTokens')).at(-1)?.target ?? '', /^tokens of user named sha256:[0-9a-f]{64}$/)
})

test('people, sessions, keys and registrations are changed where they are kept; no password or token is in an audit record or log', {
  skip,
}, async () => {
  const before = stack.asked.length
  const chosen = 'ch0sen-pa55word'
  const { user, password } = await admin.createUser({ name: 'grace' }, AS_OPERATOR)
  assert.deepEqual([user?.subject, password], ['subject-of-grace', MADE_PASSWORD])
  assert.equal((await admin.setPassword({ user: 'ADA', password: chosen }, AS_OPERATOR)).password, '')
  assert.equal((await admin.setUserEnabled({ user: 'ada', enabled: false }, AS_OPERATOR)).user?.enabled, false)
  await admin.deleteUser({ user: 'ada' }, AS_OPERATOR)
  assert.equal((await admin.endSession({ sessionHash: 'a1' }, AS_OPERATOR)).ended, true)
  assert.deepEqual(
    (await admin.rotateKeys({}, AS_OPERATOR)).keys.map(({ kid }) => kid),
    ['k1', 'k2'],
  )
  assert.equal((await admin.removeRegisteredClient({ clientId: 'r1' }, AS_OPERATOR)).removed, true)
  const invited = await admin.createInitialAccessToken({ lifetimeSeconds: 60, registrationsMax: 2 }, AS_OPERATOR)
  assert.equal(invited.token, INVITATION)
  assert.deepEqual(stack.asked.slice(before), [
    ...['createUser grace', 'setPassword Ada', 'setUserEnabled Ada false', 'deleteUser Ada', 'endSession a1'],
    ...['rotateKeys', 'removeRegisteredClient r1', 'createInitialAccessToken 60 2'],
  ])
  const targets = ['CreateUser', 'SetPassword', 'SetUserEnabled', 'DeleteUser', 'EndSession', 'RemoveRegisteredClient']
  const records = (await Promise.all(targets.map(async (action) => (await audited(action)).at(-1)?.target))).join('\n')
  const [grace, ada] = ['user subject-of-grace', 'user subject-of-ada']
  assert.equal(records, [grace, ada, ada, ada, 'session a1', 'registered client r1'].join('\n'))
  await assert.rejects(admin.setPassword({ user: 'nobody', password: chosen }, AS_OPERATOR), { code: status.NOT_FOUND })
  const refused = (await audited('SetPassword')).at(-1)?.target ?? ''
  const secrets = new RegExp(`${MADE_PASSWORD}|${chosen}|${INVITATION}`)
  for (const text of [records, refused, ...stack.adminApi.lines]) assert.doesNotMatch(text, secrets)

  const found = await admin.listSessions({ user: 'ada' }, AS_READER)
  assert.deepEqual([found.sessions[0]?.subject, found.leftOut], ['subject-of-ada', 5])
  const { grants } = await admin.listGrants({ user: 'ada', clientId: 'shop' }, AS_READER)
  assert.deepEqual([grants[0]?.subject, grants[0]?.clientId], ['subject-of-ada', 'shop'])
  const { clients, leftOut } = await admin.listRegisteredClients({}, AS_READER)
  assert.deepEqual([clients[0]?.clientId, leftOut], ['r1', 3])
  await assert.rejects(admin.deleteUser({ user: 'nobody' }, AS_OPERATOR), { code: status.NOT_FOUND })
})

test('a plan that a policy needs is not deleted, and a deleted client is forgotten', { skip }, async () => {
  await apply(`${planOf('needed')}---\n${policyOf('needs', 'needed')}---\n${clientOf('leaving')}`)
  await assert.rejects(admin.deleteDocument({ kind: 'Plan', name: 'needed' }, AS_OPERATOR), {
    code: status.FAILED_PRECONDITION,
    details: 'Plan/needed is needed by ApiPolicy/needs; change that first.',
  })
  await admin.deleteDocument({ kind: 'ApiPolicy', name: 'needs' }, AS_OPERATOR)
  await admin.deleteDocument({ kind: 'Plan', name: 'needed' }, AS_OPERATOR)
  await admin.deleteDocument({ kind: 'Client', name: 'leaving' }, AS_OPERATOR)
  assert.deepEqual(stack.asked.slice(-1), ['forgetClient leaving'])
  const documents = stack.bus.bucket(bucketContract(StoredDocumentSchema))
  for (const [kind, name] of [
    ['ApiPolicy', 'needs'],
    ['Plan', 'needed'],
    ['Client', 'leaving'],
  ] as const) {
    assert.equal(await documents.get(documentKey(kind, name)), undefined)
    await assert.rejects(admin.deleteDocument({ kind, name }, AS_OPERATOR), { code: status.NOT_FOUND })
  }
  await assert.rejects(admin.deleteDocument({ kind: 'Pod', name: 'a' }, AS_OPERATOR), { code: status.INVALID_ARGUMENT })
})

test('a block is written with its end, can be changed and lifted, and lapses by itself', { skip }, async () => {
  const asked = Date.now()
  const { block } = await admin.addBlock({ cidr: '198.51.100.0/24', ttlSeconds: 3600, reason: 'test' }, AS_OPERATOR)
  assert.ok(block?.expiresAt && Math.abs(timestampMs(block.expiresAt) - asked - 3_600_000) < 10_000)
  const entry = await stack.bus.bucket(bucketContract(BlockSchema)).get(rangeKey(block))
  assert.deepEqual(
    [entry?.value.prefixLength, entry?.value.decidedBy, entry?.value.reason],
    [120, 'operator:operator', 'test'],
  )
  assert.equal(entry?.expiresAtMs, timestampMs(block.expiresAt))

  await admin.addBlock({ cidr: '198.51.100.0/24', ttlSeconds: 60 }, AS_OPERATOR)
  await admin.addBlock({ cidr: '2001:db8::1', ttlSeconds: 1 }, AS_OPERATOR)
  await eventually(async () => (await admin.listBlocks({}, AS_READER)).blocks.length === 1, {
    what: 'the short block lapsed',
  })
  assert.deepEqual(
    await admin.removeBlock({ cidr: '198.51.100.0/24' }, AS_OPERATOR).then(({ removed }) => removed),
    true,
  )
  assert.deepEqual(
    await admin.removeBlock({ cidr: '198.51.100.0/24' }, AS_OPERATOR).then(({ removed }) => removed),
    false,
  )
  assert.deepEqual((await admin.listBlocks({}, AS_READER)).blocks, [])
})

test('callers are blocked by what their tokens say, shown, and let through again; nobody blocks themselves', {
  skip,
}, async () => {
  const hash = 'ab'.repeat(32)
  const callers = [
    ['client.c2hvcA', { case: 'clientId', value: 'shop' }],
    ['subject.YWRh', { case: 'subject', value: 'ada' }],
    [`grant.${hash}`, { case: 'grantHash', value: hash }],
    [`token.${hash}`, { case: 'tokenHash', value: hash }],
  ] as const
  for (const [key, by] of callers) {
    await admin.addBlock({ caller: { by }, ttlSeconds: 60, reason: 'test' }, AS_OPERATOR)
    const entry = await stack.bus.bucket(bucketContract(BlockSchema)).get(key)
    assert.deepEqual([entry?.value.format, entry?.value.caller?.by, entry?.value.reason], [2, by, 'test'])
    assert.ok(entry?.expiresAtMs)
  }
  const shown = (await admin.listBlocks({}, AS_READER)).blocks.map(({ caller }) => caller?.by.case).sort()
  assert.deepEqual(shown, ['clientId', 'grantHash', 'subject', 'tokenHash'])
  const targets = ['client:shop', 'subject:ada', `grant:${hash}`, `token:${hash}`]
  assert.deepEqual(
    (await audited('AddBlock')).slice(-4).map(({ target }) => target),
    targets,
  )
  for (const [, by] of callers) assert.equal((await admin.removeBlock({ caller: { by } }, AS_OPERATOR)).removed, true)
  assert.deepEqual((await admin.listBlocks({}, AS_READER)).blocks, [])

  const raw = 'a-raw-token-that-must-not-show'
  await assert.rejects(
    admin.addBlock({ caller: { by: { case: 'tokenHash', value: raw } }, ttlSeconds: 60 }, AS_OPERATOR),
    ({ code, details }) => code === status.INVALID_ARGUMENT && !details.includes(raw),
  )
  assert.equal((await audited('AddBlock')).at(-1)?.target, 'a caller')
  for (const line of stack.adminApi.lines) assert.ok(!line.includes(raw))
  await assert.rejects(
    admin.addBlock({ caller: { by: { case: 'clientId', value: 'operator' } }, ttlSeconds: 60 }, AS_OPERATOR),
    { code: status.FAILED_PRECONDITION, details: /nobody blocks themselves/ },
  )
})

test('a block of guarded addresses, of too much, without end or of nonsense is refused with the reason', {
  skip,
}, async () => {
  const refused: [string, number, number, RegExp][] = [
    ['127.0.0.1', 60, status.FAILED_PRECONDITION, /guarded/],
    ['::1', 60, status.FAILED_PRECONDITION, /guarded/],
    ['192.0.2.10/32', 60, status.FAILED_PRECONDITION, /guarded/],
    ['0.0.0.0/0', 60, status.INVALID_ARGUMENT, /too wide.*\/8/],
    ['::/0', 60, status.INVALID_ARGUMENT, /too wide/],
    ['198.51.100.9', 0, status.INVALID_ARGUMENT, /how long/],
    ['198.51.100.9', 2_592_001, status.INVALID_ARGUMENT, /30 days/],
    ['198.51.100.9/24', 60, status.INVALID_ARGUMENT, /host bits/],
    ['evil.example', 60, status.INVALID_ARGUMENT, /CIDR/],
  ]
  for (const [cidr, ttlSeconds, code, details] of refused) {
    await assert.rejects(admin.addBlock({ cidr, ttlSeconds }, AS_OPERATOR), { code, details })
  }
  assert.deepEqual((await admin.listBlocks({}, AS_READER)).blocks, [])
  assert.equal((await audited('AddBlock')).at(-1)?.result, 'INVALID_ARGUMENT')
})

test('alerts are those that SIEMs get, the newest that were asked for', { skip }, async () => {
  for (const [index, severity] of ['low', 'high', 'critical'].entries()) {
    await stack.bus.publishBytes(`${FINDING_SUBJECT}.${severity}`, Buffer.from(`{"n":${index}}`))
  }
  const { findings } = await admin.listAlerts({ limit: 2 }, AS_READER)
  assert.deepEqual(
    findings.map(({ severity, ocsfJson }) => [severity, ocsfJson]),
    [
      [Severity.HIGH, '{"n":1}'],
      [Severity.CRITICAL, '{"n":2}'],
    ],
  )
  assert.equal((await admin.listAlerts({ since: timestampFromMs(Date.now() + 60_000) }, AS_READER)).findings.length, 0)
})

test('passes come from their bucket, invoices from payment-verifier', { skip }, async () => {
  const passes = stack.bus.bucket(bucketContract(PassSchema))
  for (const clientId of ['a', 'b']) {
    await passes.put(clientId, create(PassSchema, { format: 1, passId: clientId, clientId, quotaRequests: 5n }))
  }
  assert.equal((await admin.listPasses({}, AS_READER)).passes.length, 2)
  assert.deepEqual(
    (await admin.listPasses({ clientId: 'b' }, AS_READER)).passes.map(({ passId }) => passId),
    ['b'],
  )
  await assert.rejects(admin.listInvoices({}, AS_READER), {
    code: status.UNAVAILABLE,
    details: /payment-verifier is not there/,
  })
  const unused = async () => {
    throw new AppError('internal', 'admin-api does not ask this')
  }
  await using _verifier = stack.bus.serve(VerifierService, {
    redeem: unused,
    lease: unused,
    record: unused,
    quote: unused,
    listInvoices: async ({ clientId, limit }) => ({
      invoices: [{ invoiceId: `${clientId}-${limit}`, amountSats: 1n }],
    }),
  })
  const { invoices } = await admin.listInvoices({ clientId: 'a', limit: 5000 }, AS_READER)
  assert.equal(invoices[0]?.invoiceId, 'a-1000')
})

test("money and conduct are payment-verifier's; whoever changes something is named there and in the audit", {
  skip,
}, async () => {
  const asked: unknown[] = []
  const answer =
    <T>(response: T) =>
    async ({ $typeName: _name, ...request }: Record<string, unknown> & { $typeName: string }) => {
      asked.push(request)
      return response
    }
  await using _treasury = stack.bus.serve(TreasuryService, {
    listPayments: answer({ payments: [{ txid: 'ab' }], nextPageToken: '1.0' }),
    getBooks: answer({ receivedSats: 5n, descriptor: 'wpkh(…)' }),
    reconcileBlocks: answer({ blocks: 3, nextHeight: 7 }),
    listCredits: answer({ credits: [{ clientId: 'ada', balanceSats: -3n }] }),
    adjustCredit: answer({ credit: { clientId: 'ada', balanceSats: 700n } }),
    exportLedger: answer({ entries: [], lastSequence: 0n }),
    importLedger: answer({ nextSequence: 3n }),
  })
  await using _conduct = stack.bus.serve(ConductService, {
    listConduct: answer({ standings: [{ score: 700 }] }),
    overrideConduct: answer({ standing: { score: 900 } }),
  })
  const { payments, nextPageToken } = await admin.listPayments({ pageSize: 2, clientId: 'ada' }, AS_READER)
  assert.deepEqual([payments[0]?.txid, nextPageToken], ['ab', '1.0'])
  assert.equal((await admin.getBooks({}, AS_READER)).books?.receivedSats, 5n)
  assert.equal((await admin.reconcileBlocks({ fromHeight: 4, blocksMax: 3 }, AS_READER)).part?.nextHeight, 7)
  assert.equal((await admin.listCredits({}, AS_READER)).credits[0]?.balanceSats, -3n)
  assert.equal((await admin.listConduct({ limit: 5000 }, AS_READER)).standings[0]?.score, 700)

  const adjustment = { adjustmentId: 'a'.repeat(32), clientId: 'ada', amountSats: 700n, reason: 'an apology' }
  assert.equal((await admin.adjustCredit(adjustment, AS_OPERATOR)).credit?.balanceSats, 700n)
  assert.deepEqual(asked.at(-1), { ...adjustment, operator: 'operator', txid: '', vout: 0 })
  assert.equal((await audited('AdjustCredit')).at(-1)?.target, 'credit of Client/ada: 700 sats')
  await admin.overrideConduct({ clientId: 'ada', score: 900, reason: 'known' }, AS_WRITER)
  assert.deepEqual(asked.at(-1), { clientId: 'ada', score: 900, reason: 'known', operator: 'writer' })
  await admin.overrideConduct({ clientId: 'ada', reason: 'over' }, AS_WRITER)
  assert.deepEqual(asked.at(-1), { clientId: 'ada', reason: 'over', operator: 'writer' })
  const words = (await audited('OverrideConduct')).slice(-2).map(({ target }) => target)
  assert.deepEqual(words, ['conduct of Client/ada: 900', 'conduct of Client/ada: lifted'])
  const part = { fromSequence: 3n, entries: [new Uint8Array(1), new Uint8Array(2)] }
  assert.equal((await admin.importLedger({ part }, AS_OPERATOR)).part?.nextSequence, 3n)
  assert.equal((await audited('ImportLedger')).at(-1)?.target, 'ledger entries 3 to 4')
})

test('an export is the whole ledger page by page, then the passes; it needs the scope for changes and is audited', {
  skip,
}, async () => {
  const passes = stack.bus.bucket(bucketContract(PassSchema))
  const ids = Array.from({ length: 450 }, (_, index) => `export-${index}`)
  for (const passId of ids) await passes.put(passId, create(PassSchema, { format: 1, passId }))
  const unused = async () => {
    throw new AppError('internal', 'an export does not ask this')
  }
  await using _treasury = stack.bus.serve(TreasuryService, {
    ...{ listPayments: unused, getBooks: unused, reconcileBlocks: unused, listCredits: unused },
    ...{ adjustCredit: unused, importLedger: unused },
    exportLedger: async ({ fromSequence }) => {
      const from = Number(fromSequence)
      const numbers = [from, from + 1, from + 2].filter((number) => number <= 8)
      return { entries: numbers.map((number) => Uint8Array.of(number)), lastSequence: 8n, nextAddressIndex: 5 }
    },
  })
  const before = (await audited('ExportLedger')).length
  const parts = await Array.fromAsync(admin.exportLedger({}, AS_OPERATOR))
  assert.deepEqual(
    parts.flatMap(({ part }) => part?.entries.map(([number]) => number) ?? []),
    [1, 2, 3, 4, 5, 6, 7, 8],
  )
  const exported = new Set(parts.flatMap(({ part }) => part?.passes.map(({ passId }) => passId) ?? []))
  assert.deepEqual(
    ids.filter((id) => !exported.has(id)),
    [],
  )
  await assert.rejects(Array.fromAsync(admin.exportLedger({}, AS_READER)), { code: status.PERMISSION_DENIED })
  await eventually(async () => (await audited('ExportLedger')).length === before + 2, { what: 'both are audited' })
  const records = (await audited('ExportLedger')).slice(before).map(({ actor, result }) => `${actor} ${result}`)
  assert.deepEqual(records.sort(), ['operator OK', 'reader PERMISSION_DENIED'])
})

test('flows are streamed as they come, of the node that was asked for, until the token is worth nothing', {
  skip,
}, async () => {
  const flows = contract(FlowObservedSchema)
  const token = 'short-lived'
  stack.tokens.set(token, {
    active: true,
    clientId: 'reader',
    audience: ['urn:tollward:admin'],
    scopes: ['tollward.read'],
  })
  const seen: string[] = []
  const watched = (async () => {
    for await (const { batch } of admin.watchFlows(
      { node: 'n1' },
      { metadata: { authorization: `Bearer ${token}` }, timeoutMs: 15_000 },
    )) {
      seen.push(batch?.node ?? '')
    }
  })()
  watched.catch(() => undefined)
  await eventually(
    async () => {
      for (const node of ['n2', 'n1'])
        await stack.bus.publish(flows, create(FlowObservedSchema, { node }), { key: node })
      return seen.length > 0
    },
    { what: 'a batch arrived' },
  )
  assert.ok(seen.every((node) => node === 'n1'))
  stack.tokens.delete(token)
  await assert.rejects(watched, { code: status.UNAUTHENTICATED })
  await assert.rejects(Array.fromAsync(admin.watchFlows({ node: 'a.>' }, AS_READER)), { code: status.INVALID_ARGUMENT })
})

test('a decision is explained while it is kept, and told apart from one that is too old, unknown or no id', {
  skip,
}, async () => {
  const idAt = (timeMs: number) => {
    const time = timeMs.toString(16).padStart(12, '0')
    return `${time.slice(0, 8)}-${time.slice(8)}-7abc-8def-0123456789ab`
  }
  const decisionId = idAt(Date.now())
  const call = create(CallObservedSchema, { decisionId, reason: 'no-token', status: 401 })
  await stack.bus.publish(contract(CallObservedSchema), call, { key: 'gateway' })
  const explained = await admin.explainDecision({ decisionId: decisionId.toUpperCase() }, AS_READER)
  assert.deepEqual([explained.call?.reason, explained.call?.status], ['no-token', 401])
  const refused: [string, number, RegExp][] = [
    [idAt(Date.now() - 1000), status.NOT_FOUND, /only a sample/],
    [idAt(Date.now() - 11 * 60_000), status.NOT_FOUND, /11 minutes ago; decisions are kept for 10/],
    [idAt(Date.now() + 3_600_000), status.INVALID_ARGUMENT, /future/],
    ['00000000-0000-4000-8000-000000000000', status.INVALID_ARGUMENT, /UUID of version 7/],
  ]
  for (const [id, code, details] of refused) {
    await assert.rejects(admin.explainDecision({ decisionId: id }, AS_READER), { code, details })
  }
})

test('the status tells ready, not ready with its reasons, unreachable, and off with why', { skip }, async () => {
  const { services } = await admin.getStatus({}, AS_READER)
  assert.deepEqual(
    services.map(({ name, state, detail }) => [name, state, detail]),
    [
      ['gateway', ServiceState.READY, ''],
      ['authorizer', ServiceState.NOT_READY, 'bus: is not connected'],
      ['payment-verifier', ServiceState.NOT_READY, 'does not answer'],
      ['node-sensor', ServiceState.OFF, 'needs root'],
    ],
  )
})

test('an oversized request and bytes that are no message are refused, and the next call is answered', {
  skip,
}, async () => {
  await assert.rejects(apply(`#${'x'.repeat(1_048_576)}`), {
    code: status.INVALID_ARGUMENT,
    details: /larger than 1048576/,
  })
  await assert.rejects(apply('x'.repeat(3_000_000)), { code: status.RESOURCE_EXHAUSTED })
  const raw = new Client(stack.address, credentials.createInsecure())
  const { path } = grpcDefinition(AdminService).apply
  const sent = new Promise((resolve, reject) => {
    const bytes = Buffer.from('ffffffff', 'hex')
    raw.makeUnaryRequest(
      path,
      (value: Buffer) => value,
      (value) => value,
      bytes,
      (error) => (error ? reject(error) : resolve(0)),
    )
  })
  await assert.rejects(sent, { code: status.INTERNAL })
  raw.close()
  // More faults than fit into a gRPC status, and a name that is cut in the middle of a surrogate pair.
  const many = Array.from({ length: 60 }, (_, index) => `"${'😀'.repeat(30)}${index}": 1\n`).join('')
  await assert.rejects(apply(`${planOf('a')}${many}`), { code: status.INVALID_ARGUMENT, details: /^f\.yaml:5: / })
  await assert.rejects(apply('kind: x', '😀'.repeat(100)), {
    code: status.INVALID_ARGUMENT,
    details: /kind: is no kind/,
  })
  assert.equal((await admin.getStatus({}, AS_READER)).services.length, 4)
})

test('while the bus is away calls fail in time and the service is not ready; afterwards both are well by themselves', {
  skip,
}, async () => {
  await stack.nats.stop()
  const refused: number[] = [status.UNAVAILABLE, status.DEADLINE_EXCEEDED]
  await assert.rejects(admin.listBlocks({}, AS_READER), (error: { code: number }) => refused.includes(error.code))
  const ready = async () => (await fetch(`${stack.adminApi.healthUrl}/healthz/ready`)).status
  await eventually(async () => (await ready()) === 503, { what: 'admin-api is not ready' })
  await stack.nats.start()
  await eventually(async () => (await ready()) === 200, { what: 'admin-api is ready again' })
  await eventually(() => admin.listBlocks({}, AS_READER), { what: 'blocks are listed again' })
})

test('on SIGTERM the service ends in order while a stream is open', { skip }, async () => {
  const watched = Array.fromAsync(admin.watchFlows({}, { metadata: READER }))
  watched.catch(() => undefined)
  const metrics = async () => (await fetch(`${stack.adminApi.healthUrl}/metrics`)).text()
  await eventually(async () => /tollward_admin_flow_watchers 1/.test(await metrics()), { what: 'the stream is open' })
  assert.equal(await stack.adminApi.stop(), 0)
  await assert.rejects(watched, { code: status.UNAVAILABLE })
})
