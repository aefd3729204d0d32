import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { credentials, status } from '@grpc/grpc-js'
import { bucketContract } from '@tollward/contracts'
import { AdminService, Change } from '@tollward/contracts/admin'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { type GrpcClient, grpcClient } from '@tollward/contracts/grpc'
import { documentKey } from '@tollward/documents'
import { eventually, requires } from '@tollward/testkit'
import { OPERATOR, READER, startTestStack, type TestStack } from '../test-stack.ts'

const skip = await requires({ tools: ['nats-server'] })
const AS_OPERATOR = { metadata: OPERATOR, timeoutMs: 20_000 }
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

const ruleOf = (name: string, spec: string) => `apiVersion: tollward.dev/v1
kind: KernelRule
metadata: { name: ${name} }
spec:
  ${spec.replaceAll('\n', '\n  ')}
`
const apply = (yaml: string) => admin.apply({ yaml, fileName: 'f.yaml' }, AS_OPERATOR)
const names = async () =>
  (await admin.listDocuments({ kind: 'KernelRule' }, AS_READER)).documents.map(({ name }) => name)

test('a kernel rule that names only what is guarded is refused with the reason, and nothing of its text is applied', {
  skip,
}, async () => {
  const TCP_IN = 'direction: ingress\nprotocol: tcp\naction: drop'
  const refused: [string, RegExp][] = [
    [`${TCP_IN}\nsources: [10.0.0.0/8, 127.0.0.1]`, /^f\.yaml:\d+: spec\.sources\[1\]: 127\.0\.0\.1 is guarded/],
    [`${TCP_IN}\nsources: ["::1"]`, /spec\.sources\[0\]: ::1 is guarded/],
    [`${TCP_IN}\nsources: [192.0.2.10]`, /spec\.sources\[0\]: 192\.0\.2\.10 is guarded/],
    [`${TCP_IN}\nports: [80, 22]`, /spec\.ports\[1\]: 22 is a management port \(22, 2222, 2223\)/],
    [`${TCP_IN}\nports: [2222-2223]`, /spec\.ports\[0\]: 2222-2223 is a management port/],
    ['direction: egress\nprotocol: tcp\naction: drop\nports: [2222]', /spec\.ports\[0\]: 2222 is a management port/],
    ['direction: egress\naction: drop\ndestinations: [127.0.0.1]', /spec\.destinations\[0\]: 127\.0\.0\.1 is guarded/],
    ['direction: ingress\naction: alert\nsources: [127.0.0.1]', /spec\.sources\[0\]: 127\.0\.0\.1 is guarded/],
  ]
  for (const [spec, details] of refused) {
    const text = `${ruleOf('beside', TCP_IN)}---\n${ruleOf('refused', spec)}`
    await assert.rejects(apply(text), { code: status.INVALID_ARGUMENT, details }, spec)
  }
  assert.deepEqual(await names(), [])
  const taken = [
    `${TCP_IN}\nsources: [127.0.0.0/31, 0.0.0.0/0]\nports: [20-30, 2222-2224]`,
    'direction: ingress\naction: allow\nsources: [127.0.0.1]',
    // At egress the destination counts.
    'direction: egress\nprotocol: tcp\naction: drop\nports: [25]\nsources: [127.0.0.1]',
  ]
  for (const spec of taken) await apply(ruleOf('taken', spec))
  await admin.deleteDocument({ kind: 'KernelRule', name: 'taken' }, AS_OPERATOR)
})

test('a kernel rule with a ttl ends by itself, and one that is applied again lasts from then on', {
  skip,
}, async () => {
  const bucket = stack.bus.bucket(bucketContract(StoredDocumentSchema))
  const spec = (ttl: string) => `direction: ingress\naction: drop\nsources: [203.0.113.0/24]\nttl: ${ttl}`
  const endOf = async (name: string) => (await bucket.get(documentKey('KernelRule', name)))?.expiresAtMs ?? 0
  const startedMs = Date.now()
  assert.equal((await apply(ruleOf('long', spec('1h')))).applied[0]?.change, Change.CREATED)
  const first = await endOf('long')
  assert.ok(first >= startedMs + 3_600_000 && first <= Date.now() + 3_600_000, `${first - startedMs}`)
  await eventually(() => Date.now() > startedMs + 5, { what: 'a later time' })
  assert.equal((await apply(ruleOf('long', spec('1h')))).applied[0]?.change, Change.REPLACED)
  assert.ok((await endOf('long')) > first)

  await apply(ruleOf('short', spec('1s')))
  await eventually(async () => !(await names()).includes('short'), { what: 'the rule ended' })
  assert.deepEqual(await names(), ['long'])
  await apply(ruleOf('long', 'direction: ingress\naction: drop\nsources: [203.0.113.0/24]'))
  assert.equal(await endOf('long'), 0)
})
