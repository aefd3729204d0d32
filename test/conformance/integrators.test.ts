import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { after, before, test } from 'node:test'
import { enterOwnNetwork, type RunningProcess, requires, startProcess, temporaryDirectory } from '@tollward/testkit'
import { ROOT } from '../checks/copy.ts'
import { type LocalStack, startLocalStack } from '../e2e/local-stack.ts'
import { Person } from './person.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind', 'curl', 'bash', 'python3'] })

/** What the page says to install, in the versions that were tried. */
const PYTHON_PACKAGES = ['authlib==1.9.9', 'requests==2.34.2']
const SIGN_IN_MAX_MS = 60_000

const page = ['docs/integrators.md', 'docs/payers.md'].map((name) => readFileSync(join(ROOT, name), 'utf8')).join('\n')
const resources = new AsyncDisposableStack()

const { path: directory } = resources.use(await temporaryDirectory('tollward-integrators-'))
const python = join(directory, 'python/bin/python')
// Packages come from outside; what follows has a network of its own.
const skipAuthlib = skip === false ? whyNoAuthlib() : skip
if (skip === false && process.getuid?.() === 0) enterOwnNetwork()

let stack: LocalStack
let environment: NodeJS.ProcessEnv

/** The fenced block behind a mark in one of the pages. */
function block(mark: string): string {
  const found = new RegExp(`<!-- integrators-test: ${mark} -->\n\`\`\`\\w+\n([\\s\\S]*?)\`\`\``).exec(page)?.[1]
  assert.ok(found, `neither page has a block "${mark}"`)
  return found
}

before(async () => {
  if (skip !== false) return
  // npx finds the command as it does in a clone, and the libraries are installed.
  for (const name of ['node_modules', 'package.json', 'services']) symlinkSync(join(ROOT, name), join(directory, name))
  for (const [, name = ''] of page.matchAll(/<!-- integrators-test: file (\S+) -->/g)) {
    writeFileSync(join(directory, name), block(`file ${name}`))
  }
  const path = [dirname(process.execPath), process.env.PATH].join(delimiter)
  environment = { ...process.env, PATH: path }
  const api = resources.use(await start(process.execPath, ['api.ts']))
  await api.line(/^listening$/)
  const upstream = /--upstream (\S+)/.exec(block('stack'))?.[1]
  assert.ok(upstream)
  stack = resources.use(await startLocalStack(['--upstream', upstream]))
  environment.TOLLWARD_OPERATOR_FILE = stack.operatorFile
  const shown = await finished(await bash(`${block('operator')}\necho "$PARTNER_SECRET $BOUND_PARTNER_SECRET"`))
  const [partner, bound] = shown.at(-1)?.split(' ') ?? []
  assert.ok(partner && bound, shown.join('\n'))
  environment = { ...environment, PARTNER_SECRET: partner, BOUND_PARTNER_SECRET: bound }
})
after(() => resources.disposeAsync())

/** Installs Authlib in an environment of its own. False: it is there; else the reason to skip. */
function whyNoAuthlib(): string | false {
  const install = ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', ...PYTHON_PACKAGES]
  try {
    execFileSync('python3', ['-m', 'venv', join(directory, 'python')], { stdio: 'pipe' })
    execFileSync(python, install, { stdio: 'pipe' })
    return false
  } catch (error) {
    const { stderr = '' } = error as { stderr?: Buffer | string }
    const reason = `missing: Authlib from the Python package index (${String(stderr).trim().split('\n').at(-1)})`
    if (process.env.TOLLWARD_REQUIRE === 'all') throw new Error(`TOLLWARD_REQUIRE=all, but ${reason}`, { cause: error })
    return reason
  }
}

function start(command: string, args: readonly string[]): Promise<RunningProcess> {
  return startProcess(command, args, { cwd: directory, env: environment })
}

function bash(script: string): Promise<RunningProcess> {
  return start('bash', ['-euo', 'pipefail', '-c', script])
}

/** What it wrote, once it has ended well. */
async function finished(running: RunningProcess): Promise<readonly string[]> {
  assert.equal(await running.exited, 0, running.lines.join('\n'))
  return running.lines
}

function statuses(lines: readonly string[]): (string | undefined)[] {
  return lines.filter((line) => line.startsWith('HTTP/1.1')).map((line) => line.split(' ')[1])
}

/** What the API of the page answers to a client that acts for itself. */
const hello = (clientId: string) => JSON.stringify({ hello: clientId, for: clientId, may: 'orders' })

test('the page’s way with curl works as it is printed', { skip }, async () => {
  const lines = await finished(await bash(block('curl')))
  assert.deepEqual(statuses(lines), ['200', '401'])
  const text = lines.join('\n')
  assert.ok(text.includes(hello('partner')), 'the API did not learn who called')
  assert.match(text, /"active":true/)
})

test('the page’s client with openid-client gets a token and is let through', { skip }, async () => {
  const lines = await finished(await start(process.execPath, ['client-credentials.ts']))
  assert.deepEqual(lines, [`200 ${hello('partner')}`])
})

test('the page’s client with Authlib gets a token and is let through', { skip: skipAuthlib }, async () => {
  assert.deepEqual(await finished(await start(python, ['client_credentials.py'])), [`200 ${hello('partner')}`])
})

test('the page’s application lets a person sign in, and refreshes', { skip }, async () => {
  const { subject, password } = await stack.tollward<{ subject: string; password: string }>([
    'users',
    'create',
    'grace',
  ])
  const application = resources.use(await start(process.execPath, ['sign-in.ts']))
  const [, address = ''] = (await application.line(/^Open /, SIGN_IN_MAX_MS)).split(' ')
  const person = new Person('grace', subject, password, new URL(address).origin)
  const back = await person.authorize(new URL(address))
  assert.equal((await fetch(back)).status, 200)
  const lines = await finished(application)
  assert.ok(lines.includes('Signed in: grace'), lines.join('\n'))
  assert.equal(lines.at(-1), `200 ${JSON.stringify({ hello: 'desktop-app', for: subject, may: 'orders' })}`)
})

test('the page’s client with DPoP is let through, and its token alone is not', { skip }, async () => {
  const lines = await finished(await start(process.execPath, ['dpop.ts']))
  assert.deepEqual(lines, [`200 ${hello('bound-partner')}`, 'Without the key: 401'])
})

test('the page’s stranger registers, buys and is let through', { skip }, async () => {
  const lines = await finished(await bash(block('stranger')))
  assert.deepEqual(statuses(lines), ['402'])
  assert.match(lines.at(-1) ?? '', /^\{"hello":"reg_[\w-]+","for":"reg_[\w-]+","may":"orders"\}$/)
})

test('whoever pays as the page for payers says is let through', { skip }, async () => {
  const lines = await finished(await bash(block('payer')))
  assert.deepEqual(statuses(lines), ['402', '200', '200'])
  const text = lines.join('\n')
  assert.match(text, /"plan":"orders","priceSats":"9500","listPriceSats":"10000"/)
  assert.match(text, /http:\/\/127\.0\.0\.1:4020\/pay\/[\w-]{22}/)
})

test('the page’s API takes no token but the gateway’s', { skip }, async () => {
  for (const authorization of ['', 'Bearer x', 'Bearer eyJhbGciOiJub25lIn0.e30.']) {
    assert.equal((await fetch('http://127.0.0.1:3001/echo', { headers: { authorization } })).status, 401)
  }
})
