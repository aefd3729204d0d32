import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import type { Client } from '@tollward/bus'
import { GrantService, UserService } from '@tollward/contracts/token'
import { eventually, requires } from '@tollward/testkit'
import axe from 'axe-core'
import puppeteer, { type Browser, type Page } from 'puppeteer-core'
import { askForToken, basic, openTestIssuer, postForm, type TestIssuer } from '../../test-issuer.ts'
import { authorizationRequest, PASSWORD, redemption } from '../../test-person.ts'
import { readMasterSecret } from '../master-secret.ts'
import { openAttempts } from './attempts.ts'

const CHROMIUM = '/usr/bin/chromium'

const skip = await requires({ tools: ['nats-server'], files: [CHROMIUM] })

/** What would be markup if anything were forgotten. */
const CLIENT_NAME = 'Shop <b>"&\' co'

const NAVIGATION_TIMEOUT_MS = 20_000

let issuer: TestIssuer
/** Where the client waits, on another site than the issuer. */
let clientUrl: string
let secret: string
let browser: Browser
let users: Client<typeof UserService>
/** Who signs in where nothing of them is changed. */
let somebody: string
const resources = new AsyncDisposableStack()

before(async () => {
  if (skip) return
  issuer = resources.use(await openTestIssuer({ scopes: ['orders', 'stock'], audience: ['orders-api'] }))
  await issuer.replica()
  users = issuer.bus.client(UserService, { timeoutMs: NAVIGATION_TIMEOUT_MS })
  clientUrl = await startClientSite()
  secret = await issuer.register('shop', {
    displayName: CLIENT_NAME,
    grants: ['authorization_code', 'refresh_token'],
    redirectUris: [`${clientUrl}/cb`],
  })
  await issuer.apply('tv', { displayName: 'Television', grants: ['device_code'] })
  somebody = await newPerson()
  browser = await puppeteer.launch({
    executablePath: CHROMIUM,
    protocolTimeout: NAVIGATION_TIMEOUT_MS,
    userDataDir: join(issuer.directory, 'browser'),
    args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
  })
  resources.defer(() => browser.close())
})

after(() => resources.disposeAsync())

/** A page for the client's redirect URI, and one with a form that posts what its query says to where it says. */
async function startClientSite(): Promise<string> {
  const server: Server = createServer((request, response) => {
    const { searchParams } = new URL(request.url ?? '/', 'http://client')
    const action = searchParams.get('post')
    searchParams.delete('post')
    const fields = [...searchParams].map(([name, value]) => `<input name="${name}" value="${value}">`)
    response.setHeader('content-type', 'text/html')
    response.end(
      action === null
        ? '<h1>client</h1>'
        : `<form method="post" action="${action}">${fields}<button autofocus>go</button></form>`,
    )
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  resources.defer(
    () =>
      new Promise<void>((resolve) => {
        server.closeAllConnections()
        server.close(() => resolve())
      }),
  )
  return `http://localhost:${(server.address() as AddressInfo).port}`
}

async function newPerson(): Promise<string> {
  const name = `person-${randomBytes(6).toString('hex')}`
  await users.createUser({ name, password: PASSWORD })
  return name
}

async function sessionsOf(name: string): Promise<unknown[]> {
  const [user] = (await users.listUsers({ user: name })).users
  return (await issuer.bus.client(GrantService).listSessions({ subject: user?.subject ?? 'nobody' })).sessions
}

/** A window of a browser that knows nothing yet, in which no script runs. */
async function newPage(): Promise<Page & AsyncDisposable> {
  const context = await browser.createBrowserContext()
  const page = await context.newPage()
  page.setDefaultTimeout(NAVIGATION_TIMEOUT_MS)
  await page.setJavaScriptEnabled(false)
  return Object.assign(page, { [Symbol.asyncDispose]: () => context.close() })
}

const { verifier, parameters: request } = authorizationRequest('shop', { state: 'the-state' })

function authorizationUrl(parameters: Record<string, string> = {}): string {
  const query = new URLSearchParams({ ...request, redirect_uri: `${clientUrl}/cb`, ...parameters })
  return `${issuer.url}/auth?${query}`
}

async function press(page: Page, ...keys: ('Tab' | 'Enter' | 'Space')[]): Promise<void> {
  for (const key of keys) await page.keyboard.press(key)
}

/** Presses a key that leads to another page. */
async function pressAndGo(page: Page, key: 'Enter' | 'Space'): Promise<void> {
  // A page that has just come may not have given its focus away yet.
  await eventually(() => valueIn(page, 'document.activeElement !== document.body'), { what: 'something has the focus' })
  await Promise.all([page.waitForNavigation(), page.keyboard.press(key)])
}

/** What an expression is worth in the page; the browser evaluates it although scripts of the page do not run. */
async function valueIn<T>(page: Page, expression: string): Promise<T> {
  return (await page.evaluate(expression)) as T
}

/** Goes on to the button with this text by the keyboard, and presses it. */
async function pressButton(page: Page, text: string): Promise<void> {
  for (let tabs = 0; tabs < 40; tabs++) {
    const focused = "document.activeElement.tagName === 'BUTTON' && document.activeElement.textContent"
    if ((await valueIn<string | false>(page, focused)) === text) return pressAndGo(page, 'Enter')
    await press(page, 'Tab')
  }
  assert.fail(`no key leads to the button "${text}" of: ${await textOf(page)}`)
}

async function typeSignIn(page: Page, name: string, password: string): Promise<void> {
  await eventually(() => valueIn(page, "document.activeElement.id === 'name'"), { what: 'the name has the focus' })
  await page.keyboard.type(name)
  await press(page, 'Tab')
  await page.keyboard.type(password)
  await pressAndGo(page, 'Enter')
}

function textOf(page: Page): Promise<string> {
  return valueIn(page, 'document.body.innerText')
}

function headingOf(page: Page): Promise<string> {
  return valueIn(page, "document.querySelector('h1')?.textContent ?? ''")
}

/** The token of the page's first form. */
function formTokenOf(page: Page): Promise<string> {
  return valueIn(page, "document.querySelector('input[name=form]')?.value ?? ''")
}

/** The cookies that the browser would send to the page. */
async function cookiesFor(page: Page, url: string): Promise<string> {
  const cookies = await page.browserContext().cookies()
  const sent = cookies.filter(({ path }) => new URL(url).pathname.startsWith(path))
  return sent.map(({ name, value }) => `${name}=${value}`).join('; ')
}

/** axe-core finds nothing that keeps anybody out, in light and in dark. */
async function assertAccessible(page: Page): Promise<void> {
  await page.setJavaScriptEnabled(true)
  await page.evaluate(axe.source)
  for (const [value, rules] of [
    ['light', '{}'],
    ['dark', "{ runOnly: ['color-contrast'] }"],
  ] as const) {
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value }])
    const run = `axe.run(${rules}).then(({ violations }) => violations.map((one) => JSON.stringify(one)))`
    assert.deepEqual(await valueIn(page, run), [], `${value}: ${await headingOf(page)}`)
  }
  await page.setJavaScriptEnabled(false)
}

/** Signs in and consents, and says where the client is reached. */
async function authorize(page: Page, name: string, parameters: Record<string, string> = {}): Promise<URL> {
  await page.goto(authorizationUrl(parameters))
  await typeSignIn(page, name, PASSWORD)
  if (page.url().startsWith(issuer.url)) await pressButton(page, 'Allow')
  return new URL(page.url())
}

test('a person signs in and consents with the keyboard alone, without scripts, and the client gets its code', {
  skip,
}, async () => {
  await using page = await newPage()
  const name = await newPerson()
  await page.goto(authorizationUrl())
  assert.equal(await headingOf(page), 'Sign in')
  assert.match(await textOf(page), /to go on to Shop <b>"&' co/)
  await assertAccessible(page)
  await typeSignIn(page, name, PASSWORD)
  assert.equal(await headingOf(page), `Let ${CLIENT_NAME} act for you?`)
  const text = await textOf(page)
  for (const said of [name, 'recognise you', 'orders-api', 'with: orders', clientUrl])
    assert(text.includes(said), `${said} in ${text}`)
  assert(!text.includes('stock'), 'what was not asked for')
  await assertAccessible(page)
  await pressButton(page, 'Allow')
  const landed = new URL(page.url())
  assert.equal(landed.origin + landed.pathname, `${clientUrl}/cb`)
  assert.equal(landed.searchParams.get('state'), 'the-state')
  assert.equal(landed.searchParams.get('iss'), issuer.url)
  const code = landed.searchParams.get('code') ?? ''
  const form = { ...redemption('shop', { code, verifier }), redirect_uri: `${clientUrl}/cb` }
  const tokens = await askForToken(issuer.url, form, basic('shop', secret))
  assert.equal(tokens.status, 200, JSON.stringify(tokens))
  const { info } = await issuer.rpc.exchange({ token: tokens.access_token })
  const [user] = (await users.listUsers({ user: name })).users
  assert.equal(info?.subject, user?.subject)
  assert.deepEqual(
    info?.scopes.filter((scope) => scope !== 'openid'),
    ['orders'],
  )
  await users.setUserEnabled({ name, enabled: false })
  const later = await issuer.rpc.exchange({ token: tokens.access_token })
  assert.equal(later.info?.active, false, 'a disabled person’s tokens are worth nothing at once')
})

test('a wrong password says so, keeps the name, takes the focus and lets the next try', { skip }, async () => {
  await using page = await newPage()
  const name = somebody
  await page.goto(authorizationUrl())
  await typeSignIn(page, name, 'something wrong')
  assert.match(await textOf(page), /Name or password is wrong/)
  const state = await valueIn(
    page,
    `({
      title: document.title,
      focused: document.activeElement.getAttribute('role'),
      name: document.querySelector('#name').value,
      password: document.querySelector('#password').value,
      describedBy: document.querySelector('#password').getAttribute('aria-describedby'),
    })`,
  )
  assert.deepEqual(state, {
    title: 'Error: Sign in – Tollward',
    focused: 'alert',
    name,
    password: '',
    describedBy: 'fault',
  })
  await assertAccessible(page)
  await press(page, 'Tab', 'Tab', 'Tab')
  await page.keyboard.type(PASSWORD)
  await pressAndGo(page, 'Enter')
  assert.match(await headingOf(page), /act for you/)
})

test('a browser that was let in is not asked again, unless the client or the time asks for it', { skip }, async () => {
  await using page = await newPage()
  const name = somebody
  await authorize(page, name)
  await page.goto(authorizationUrl({ prompt: 'none' }))
  assert(new URL(page.url()).searchParams.has('code'), page.url())
  await page.goto(authorizationUrl({ prompt: 'none', scope: 'openid orders stock' }))
  assert.equal(new URL(page.url()).searchParams.get('error'), 'consent_required')
  await page.goto(authorizationUrl({ prompt: 'consent' }))
  assert.match(await headingOf(page), /act for you/)
  await page.goto(authorizationUrl({ prompt: 'login' }))
  assert.equal(await headingOf(page), 'Sign in')
  await page.goto(authorizationUrl({ max_age: '0', login_hint: name }))
  assert.equal(await headingOf(page), 'Sign in')
  await page.keyboard.type(PASSWORD)
  await pressAndGo(page, 'Enter')
  assert(new URL(page.url()).searchParams.has('code'), `the hint was filled in, and the grant is there: ${page.url()}`)
  await using stranger = await newPage()
  await stranger.goto(authorizationUrl({ prompt: 'none' }))
  assert.equal(new URL(stranger.url()).searchParams.get('error'), 'login_required')
})

test('who signs in as somebody else, while another is signed in, has that one signed out first', { skip }, async () => {
  await using page = await newPage()
  const other = await newPerson()
  await authorize(page, somebody)
  await page.goto(authorizationUrl({ prompt: 'login' }))
  await typeSignIn(page, other, PASSWORD)
  await pressButton(page, 'Continue')
  assert.match(await headingOf(page), /act for you/)
  assert((await textOf(page)).includes(other))
  await pressButton(page, 'Allow')
  assert(new URL(page.url()).searchParams.has('code'), page.url())
  assert.equal((await sessionsOf(other)).length, 1)
})

test('who cancels or denies goes back to the client with access_denied', { skip }, async () => {
  await using page = await newPage()
  await page.goto(authorizationUrl())
  await pressButton(page, 'Cancel')
  assert.equal(new URL(page.url()).searchParams.get('error'), 'access_denied')
  await page.goto(authorizationUrl())
  await typeSignIn(page, somebody, PASSWORD)
  await pressButton(page, 'Deny')
  const landed = new URL(page.url())
  assert.equal(landed.origin, clientUrl)
  assert.equal(landed.searchParams.get('error'), 'access_denied')
  assert.equal(landed.searchParams.get('state'), 'the-state')
})

test('a form of another site is refused, even with the right token and cookies', { skip }, async () => {
  await using page = await newPage()
  const name = somebody
  await page.goto(authorizationUrl())
  await typeSignIn(page, name, PASSWORD)
  const form = await formTokenOf(page)
  const target = page.url()
  await page.goto(`${clientUrl}/?${new URLSearchParams({ post: target, form, decision: 'allow' })}`)
  await pressAndGo(page, 'Enter')
  assert.equal(await headingOf(page), 'Not from here')
  const cookie = await cookiesFor(page, target)
  const post = (headers: Record<string, string>, token: string) =>
    fetch(target, {
      method: 'POST',
      redirect: 'manual',
      headers: { cookie, ...headers },
      body: new URLSearchParams({ form: token, decision: 'allow' }),
    })
  for (const headers of [
    { origin: 'http://evil.example' },
    { origin: 'null' },
    { 'sec-fetch-site': 'same-site' },
    { 'sec-fetch-site': 'cross-site' },
  ]) {
    assert.equal((await post(headers, form)).status, 403, JSON.stringify(headers))
  }
  for (const token of ['', 'AAAA', form.slice(0, -2), `${form.slice(0, -2)}AA`]) {
    assert.equal((await post({}, token)).status, 400, 'not without the token')
  }
  assert.equal((await post({ origin: issuer.url, 'sec-fetch-site': 'same-origin' }, form)).status, 303)
})

test('no script runs in a page, however it got there', { skip }, async () => {
  await using page = await newPage()
  await page.setJavaScriptEnabled(true)
  const hint = '"><script>document.title = "injected"</script><img src=x onerror="document.title = \'injected\'">'
  const response = await page.goto(authorizationUrl({ login_hint: hint }))
  assert.equal(await valueIn(page, "document.querySelector('#name').value"), hint)
  assert.match(await page.title(), /^Sign in/)
  const violated = await valueIn(
    page,
    `new Promise((resolve) => {
      const violations = []
      document.addEventListener('securitypolicyviolation', ({ effectiveDirective }) => {
        violations.push(effectiveDirective)
        if (violations.length === 2) resolve(violations.sort())
      })
      const script = document.createElement('script')
      script.textContent = 'document.title = "injected"'
      const image = document.createElement('img')
      image.src = 'http://127.0.0.1:9/x.png'
      document.body.append(script, image)
    })`,
  )
  assert.deepEqual(violated, ['img-src', 'script-src-elem'])
  assert.match(await page.title(), /^Sign in/)
  const headers = response?.headers() ?? {}
  assert.match(
    headers['content-security-policy'] ?? '',
    /^default-src 'none'; base-uri 'none'; frame-ancestors 'none'; style-src 'sha256-[^']+'; form-action 'self' http:\/\/localhost:\d+$/,
  )
  assert.equal(headers['cache-control'], 'no-store')
  assert.equal(headers['x-content-type-options'], 'nosniff')
  assert.equal(headers['referrer-policy'], 'same-origin')
})

test('a person connects a device with the keyboard alone', { skip }, async () => {
  await using page = await newPage()
  const name = somebody
  const tvSecret = (await issuer.rpc.replaceClientSecret({ clientId: 'tv' })).clientSecret
  const ask = async (path: string, body: Record<string, string>): Promise<Record<string, string>> =>
    JSON.parse((await postForm(issuer.url + path, body, basic('tv', tvSecret))).text)
  const device = await ask('/device/auth', { scope: 'orders' })
  const poll = () =>
    ask('/token', { grant_type: 'urn:ietf:params:oauth:grant-type:device_code', device_code: device.device_code ?? '' })
  await page.goto(device.verification_uri ?? '')
  await assertAccessible(page)
  await page.keyboard.type('BBBB-BBBB')
  await pressAndGo(page, 'Enter')
  assert.match(await textOf(page), /There is no such code/)
  await assertAccessible(page)
  await press(page, 'Tab', 'Tab')
  await page.keyboard.down('Control')
  await page.keyboard.press('a')
  await page.keyboard.up('Control')
  await page.keyboard.type(device.user_code ?? '')
  await pressAndGo(page, 'Enter')
  assert.equal(await headingOf(page), 'Connect Television?')
  assert((await textOf(page)).includes(device.user_code ?? 'no code'))
  await assertAccessible(page)
  assert.equal((await poll()).error, 'authorization_pending')
  await pressButton(page, 'Yes, go on')
  await typeSignIn(page, name, PASSWORD)
  assert.equal(await headingOf(page), 'Let Television act for you?')
  await pressButton(page, 'Allow')
  assert.equal(await headingOf(page), 'Your device is connected')
  await assertAccessible(page)
  assert.match((await poll()).access_token ?? '', /^[\w-]{43}$/)
})

test('a person signs out by way of a question', { skip }, async () => {
  await using page = await newPage()
  await authorize(page, somebody)
  await page.goto(`${issuer.url}/session/end`)
  assert.equal(await headingOf(page), 'Sign out?')
  await assertAccessible(page)
  await pressButton(page, 'Sign out')
  assert.equal(await headingOf(page), 'You are signed out')
  await assertAccessible(page)
  await page.goto(authorizationUrl({ prompt: 'none' }))
  assert.equal(new URL(page.url()).searchParams.get('error'), 'login_required')
})

test('an error that no client can be told is a page in the words of the RFC', { skip }, async () => {
  await using page = await newPage()
  const response = await page.goto(authorizationUrl({ redirect_uri: 'https://evil.example/cb' }))
  assert.equal(response?.status(), 400)
  assert.match(await textOf(page), /invalid_redirect_uri/)
  assert.doesNotMatch(await textOf(page), /\.js|node_modules|Error:/)
  await assertAccessible(page)
  await page.goto(`${issuer.url}/interaction/nothing`)
  assert.equal(await headingOf(page), 'This page is over')
  await assertAccessible(page)
})

test('a person sees what they have on their account page, and ends it', { skip }, async () => {
  await using page = await newPage()
  await using elsewhere = await newPage()
  const name = await newPerson()
  const [user] = (await users.listUsers({ user: name })).users
  await authorize(elsewhere, name)
  await page.goto(`${issuer.url}/account`)
  await assertAccessible(page)
  await typeSignIn(page, name, PASSWORD)
  assert.equal(await headingOf(page), 'Your account')
  assert((await textOf(page)).includes(CLIENT_NAME))
  await assertAccessible(page)
  const grantService = issuer.bus.client(GrantService)
  const has = async () => {
    const subject = user?.subject ?? 'nobody'
    const [{ sessions }, { grants }] = await Promise.all([
      grantService.listSessions({ subject }),
      grantService.listGrants({ subject }),
    ])
    return { sessions: sessions.length, grants: grants.length }
  }
  assert.deepEqual(await has(), { sessions: 2, grants: 1 })
  await pressButton(page, 'End access')
  assert.match(await textOf(page), /lost its access/)
  assert.deepEqual(await has(), { sessions: 2, grants: 0 })
  await pressButton(page, 'End')
  assert.match(await textOf(page), /The session was ended/)
  assert.deepEqual(await has(), { sessions: 1, grants: 0 })
  await elsewhere.goto(authorizationUrl({ prompt: 'none' }))
  assert.equal(new URL(elsewhere.url()).searchParams.get('error'), 'login_required')
  await pressButton(page, 'End everything')
  assert.equal(await headingOf(page), 'Everything has ended')
  assert.deepEqual(await has(), { sessions: 0, grants: 0 })
  await page.goto(`${issuer.url}/account`)
  assert.equal(await headingOf(page), 'Sign in')
})

test('a person ends nothing that is somebody else’s', { skip }, async () => {
  await using page = await newPage()
  await using victim = await newPage()
  const [name, other] = [await newPerson(), await newPerson()]
  await authorize(victim, other)
  await page.goto(`${issuer.url}/account`)
  await typeSignIn(page, name, PASSWORD)
  const headers = { cookie: await cookiesFor(page, page.url()) }
  const form = await formTokenOf(page)
  const [user] = (await users.listUsers({ user: other })).users
  const grantService = issuer.bus.client(GrantService)
  const subject = user?.subject ?? 'nobody'
  const [session] = (await grantService.listSessions({ subject })).sessions
  const [grant] = (await grantService.listGrants({ subject })).grants
  assert(session && grant)
  const ending = { sessions: { session: session.sessionHash }, grants: { grant: grant.grantHash } }
  for (const [path, field] of Object.entries(ending)) {
    const body = new URLSearchParams({ form, ...field })
    const response = await fetch(`${issuer.url}/account/${path}`, { method: 'POST', redirect: 'manual', headers, body })
    assert.equal(response.headers.get('location'), '/account?done=gone')
  }
  assert.equal((await grantService.listSessions({ subject })).sessions.length, 1)
  assert.equal((await grantService.listGrants({ subject })).grants.length, 1)
})

test('a new password ends every other session, and the person stays signed in where they changed it', {
  skip,
}, async () => {
  await using page = await newPage()
  await using elsewhere = await newPage()
  const name = await newPerson()
  await authorize(elsewhere, name)
  await page.goto(`${issuer.url}/account`)
  await typeSignIn(page, name, PASSWORD)
  const change = async (...values: string[]) => {
    await page.focus('#current')
    for (const value of values) {
      await page.keyboard.type(value)
      await press(page, 'Tab')
    }
    await pressButton(page, 'Change the password')
  }
  await change(PASSWORD, 'short', 'short')
  assert.match(await textOf(page), /at least 12 characters/)
  await assertAccessible(page)
  await change(PASSWORD, 'another horse battery', 'another horse batteri')
  assert.match(await textOf(page), /not the same both times/)
  await change('something wrong', 'another horse battery', 'another horse battery')
  assert.match(await textOf(page), /The password until now is wrong/)
  await change(PASSWORD, 'another horse battery', 'another horse battery')
  assert.match(await textOf(page), /The password was changed/)
  await elsewhere.goto(authorizationUrl({ prompt: 'none' }))
  assert.equal(new URL(elsewhere.url()).searchParams.get('error'), 'login_required')
  await page.goto(`${issuer.url}/account`)
  assert.equal(await headingOf(page), 'Your account')
  await elsewhere.goto(authorizationUrl())
  await typeSignIn(elsewhere, name, PASSWORD)
  assert.match(await textOf(elsewhere), /Name or password is wrong/)
})

test('a client that takes its code by form_post gets it, with scripts and without', { skip }, async () => {
  await using page = await newPage()
  await authorize(page, somebody)
  await page.goto(authorizationUrl({ prompt: 'none', response_mode: 'form_post' }))
  await pressButton(page, 'Continue')
  assert.equal(page.url(), `${clientUrl}/cb`)
  await page.setJavaScriptEnabled(true)
  await page.goto(authorizationUrl({ prompt: 'none', response_mode: 'form_post' }))
  await eventually(() => page.url() === `${clientUrl}/cb`, { what: 'the page has sent itself' })
})

test('a name that was tried too often has to wait, except where its person has signed in before', {
  skip,
}, async () => {
  await using page = await newPage()
  await using stranger = await newPage()
  const name = await newPerson()
  await authorize(page, name)
  const attempts = openAttempts({ bus: issuer.bus, masterSecret: readMasterSecret(issuer.masterSecretFile) })
  const tried = async () => (await attempts.signIn({ name, address: randomBytes(16), browser: undefined })).admitted
  while (await tried());
  await stranger.goto(authorizationUrl())
  await typeSignIn(stranger, name, PASSWORD)
  assert.match(await textOf(stranger), /That was too often. Try again in 5 minutes./)
  await assertAccessible(stranger)
  await page.goto(`${issuer.url}/session/end`)
  await pressButton(page, 'Sign out')
  await page.goto(`${issuer.url}/account`)
  await typeSignIn(page, name, PASSWORD)
  assert.equal(await headingOf(page), 'Your account')
})

test('a sign-in that was begun before everything ended does not come to its end after it', { skip }, async () => {
  await using page = await newPage()
  const name = await newPerson()
  await page.goto(authorizationUrl())
  const form = await formTokenOf(page)
  const cookie = await cookiesFor(page, page.url())
  const response = await fetch(page.url(), {
    method: 'POST',
    redirect: 'manual',
    headers: { cookie },
    body: new URLSearchParams({ form, name, password: PASSWORD }),
  })
  assert.equal(response.status, 303)
  await users.setPassword({ name, password: 'another horse battery' })
  await page.goto(response.headers.get('location') ?? '')
  assert.equal(await headingOf(page), 'This page is over')
  assert.deepEqual(await sessionsOf(name), [], 'nobody is signed in')
})

test('a sign-in that one replica began is finished by another', { skip }, async () => {
  await using page = await newPage()
  await using other = await issuer.replica()
  await page.goto(authorizationUrl())
  const form = await formTokenOf(page)
  const at = (path: string) => new URL(path, other.url)
  const posted = await fetch(at(new URL(page.url()).pathname), {
    method: 'POST',
    redirect: 'manual',
    headers: { cookie: await cookiesFor(page, page.url()) },
    body: new URLSearchParams({ form, name: somebody, password: PASSWORD }),
  })
  assert.equal(posted.status, 303)
  const resumed = posted.headers.get('location') ?? ''
  const cookie = await cookiesFor(page, resumed)
  const next = await fetch(at(new URL(resumed).pathname), { redirect: 'manual', headers: { cookie } })
  assert.equal(next.status, 303)
  assert.match(next.headers.get('location') ?? '', /^\/interaction\//, 'now the consent is asked for')
})

test('codes of devices cannot be guessed fast', { skip }, async () => {
  const tryCode = async () => {
    const body = new URLSearchParams({ user_code: 'BBBB-BBBB', xsrf: 'x' })
    return (await fetch(`${issuer.url}/device`, { method: 'POST', body, headers: { accept: 'text/html' } })).status
  }
  const statuses = new Set<number>()
  for (let count = 0; count < 60; count++) statuses.add(await tryCode())
  assert.deepEqual([...statuses].sort(), [400, 429])
})

test('without the bus a person reads that it does not work at the moment', { skip }, async () => {
  await using page = await newPage()
  await page.goto(`${issuer.url}/account`)
  await typeSignIn(page, somebody, PASSWORD)
  await issuer.nats.stop()
  for (const url of [`${issuer.url}/account`, authorizationUrl()]) {
    const response = await page.goto(url)
    assert.equal(response?.status(), 503, url)
    assert.equal(await headingOf(page), 'This does not work at the moment')
    assert.equal(response?.headers()['retry-after'], '5')
    await assertAccessible(page)
  }
})
