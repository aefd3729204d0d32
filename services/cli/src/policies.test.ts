import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { Readable } from 'node:stream'
import { after, before, test } from 'node:test'
import { temporaryDirectory } from '@tollward/testkit'
import { runCommand } from './program.ts'

const LOCAL = resolve(import.meta.dirname, '../../../deploy/local/documents')

const POLICY = `apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: orders }
spec:
  hosts: [api.example]
  rules:
    - name: read
      match: { methods: [GET], path: "/orders/{id}" }
      require: { token: { scopes: [orders] }, payment: { plan: orders } }
      limit: { requests: 5, perSeconds: 1, by: client }
    - name: write
      match: { methods: [POST], path: "/orders/{id}" }
      require: { token: { scopes: [write] } }
`
const EXAMPLES = `apiVersion: tollward.dev/v1
kind: PolicyExamples
metadata: { name: orders }
spec:
  policies: [orders.yaml]
  examples:
    - name: it is read with the scope and a pass
      request: { url: "https://api.example/orders/7" }
      caller: { client: shop, scopes: [orders], passes: [orders] }
      expect: { outcome: admitted, rule: orders/read, upstreamHeaders: { x-tollward-client: shop } }
    - name: nobody else reads it
      request: { url: "https://api.example/orders/7" }
      expect: { status: 401 }
`

let directory: Awaited<ReturnType<typeof temporaryDirectory>>
let policyFile: string

before(async () => {
  directory = await temporaryDirectory()
  policyFile = join(directory.path, 'orders.yaml')
  await writeFile(policyFile, POLICY)
})
after(() => directory[Symbol.asyncDispose]())

/** Runs a command that needs no stack: there is no credential that it could use. */
async function tollward(...argv: string[]) {
  const run = { code: -1, out: '', err: '' }
  run.code = await runCommand(argv, {
    out: (text) => {
      run.out += text
    },
    err: (text) => {
      run.err += text
    },
    stdin: Readable.from([]),
    operatorFile: join(directory.path, 'nothing.json'),
    signal: new AbortController().signal,
  })
  return run
}

async function examplesFile(text: string): Promise<string> {
  const file = join(directory.path, 'orders.examples.yaml')
  await writeFile(file, text)
  return file
}

const simulated = (...argv: string[]) =>
  tollward('simulate', '-f', policyFile, '--request', 'GET https://api.example/orders/7', ...argv)

test('a simulation tells what would happen and why, in words and as JSON, without any stack', async () => {
  const refused = await simulated('--client', 'shop')
  assert.deepEqual([refused.code, refused.err], [0, ''])
  assert.match(refused.out, /^outcome +refused\nstatus +403\nreason +scope-missing\n/)
  assert.match(refused.out, /^rule +orders\/read$/m)
  assert.match(refused.out, /^ {2}orders\/write: wants methods \["POST"\]$/m)
  const paid = ['--client', 'shop', '--scope', 'orders,other', '--pass', 'orders', '-H', 'x-tollward-client: forged']
  const row = JSON.parse((await simulated(...paid, '-o', 'json')).out)
  assert.deepEqual([row.outcome, row.url, row.rule], ['admitted', 'api.example/orders/7', 'orders/read'])
  assert.deepEqual(
    [row.upstream.set['x-tollward-client'], row.upstream.set['x-tollward-scopes'], row.upstream.set.authorization],
    ['shop', 'orders other', 'Bearer <internal token>'],
  )
  assert.equal(row.limits[0].requests, 5)
  assert.match((await simulated('--blocked')).out, /^reason +blocked$/m)
  assert.match((await simulated('--client', 'shop', '--blocked', 'caller')).out, /^reason +caller-blocked$/m)
})

test('a simulation that was not said whole is not guessed: one sentence says what is missing', async () => {
  const cases: [string[], RegExp][] = [
    [['--scope', 'orders'], /^tollward: Say with --client whose token the request has\.\n$/],
    [['--from', 'nowhere'], /^tollward: The from is no IP address\.\n$/],
    [['-H', 'x-beta'], /^tollward: A header is a name, a colon and a value/],
    [['--client', 'shop', '--pass', 'No Plan'], /^tollward: The caller\.passes\[0\] |^tollward: The passes\[0\] /],
    [['-f', join(directory.path, 'none.yaml')], /none\.yaml cannot be read\.\n$/],
  ]
  for (const [argv, sentence] of cases) {
    const run = await simulated(...argv)
    assert.equal(run.code, 1, argv.join(' '))
    assert.match(run.err, sentence)
  }
  assert.match((await tollward('simulate', '--request', 'https://api.example/')).err, /a method and a whole URL/)
})

test('examples are held to their policies: what fails is told with file and line, and the exit code is 1', async () => {
  const file = await examplesFile(EXAMPLES)
  assert.deepEqual(await tollward('policy', 'test', file), {
    code: 0,
    out: 'ok      it is read with the scope and a pass\nok      nobody else reads it\n2 passed, 0 failed\n',
    err: '',
  })
  await examplesFile(EXAMPLES.replace('status: 401', 'outcome: admitted, rule: none'))
  const failed = await tollward('policy', 'test', file)
  assert.equal(failed.code, 1)
  assert.match(failed.out, /^not ok {2}nobody else reads it \(.*orders\.examples\.yaml:11\)$/m)
  assert.match(failed.out, /^ {8}outcome is refused, not admitted\n {8}rule is orders\/read, not none$/m)
  assert.match(failed.out, /^1 passed, 1 failed$/m)
  const rows = JSON.parse((await tollward('policy', 'test', file, '-o', 'json')).out)
  assert.deepEqual(
    rows.map(({ line, passed }: { line: number; passed: boolean }) => [line, passed]),
    [
      [7, true],
      [11, false],
    ],
  )
})

test('each thing that an example expects is compared', async () => {
  const admitted = '{ outcome: admitted, rule: orders/read, upstreamHeaders: { x-tollward-client: shop } }'
  const wrong: [string, RegExp][] = [
    ['{ outcome: would-refuse }', /outcome is admitted, not would-refuse/],
    ['{ status: 403 }', /status is none, not 403/],
    ['{ reason: blocked }', /reason is none, not blocked/],
    ['{ rule: orders/write }', /rule is orders\/read, not orders\/write/],
    ['{ target: /orders/8 }', /target is \/orders\/7, not \/orders\/8/],
    ['{ upstreamHeaders: { X-Tollward-Client: shop2 } }', /upstream header X-Tollward-Client is shop, not shop2/],
    ['{ upstreamHeaders: { x-tollward-client: null } }', /upstream header x-tollward-client is shop, not absent/],
    [
      '{ upstreamHeaders: { x-tollward-pass: null } }',
      /upstream header x-tollward-pass is <pass for orders>, not absent/,
    ],
    ['{ responseHeaders: { retry-after: "1" } }', /response header retry-after is absent, not 1/],
  ]
  for (const [expected, fault] of wrong) {
    const run = await tollward('policy', 'test', await examplesFile(EXAMPLES.replace(admitted, expected)))
    assert.equal(run.code, 1, expected)
    assert.match(run.out, fault)
  }
})

test('an example that expects what does not exist is a fault of the example', async () => {
  const wrong: [string, RegExp][] = [
    ['{ reason: not-known }', /:10: spec\.examples\[0\]\.expect\.reason: is no reason of a refusal$/m],
    [
      '{ rule: orders/other }',
      /:10: spec\.examples\[0\]\.expect\.rule: is no policy\/rule of these policies, nor none$/m,
    ],
  ]
  for (const [expected, fault] of wrong) {
    const text = EXAMPLES.replace(/\{ outcome: admitted.*\}/, expected)
    const run = await tollward('policy', 'test', await examplesFile(text))
    assert.deepEqual([run.code, run.out], [1, ''])
    assert.match(run.err, fault)
  }
  const notExamples = await tollward('policy', 'test', policyFile)
  assert.match(notExamples.err, /orders\.yaml:2: kind: is no PolicyExamples/)
})

test('the policy of the local stack decides what its examples say', async () => {
  const { code, out } = await tollward('policy', 'test', join(LOCAL, 'example.examples.yaml'))
  assert.equal(code, 0, out)
})
