import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { eventually, requires, temporaryDirectory } from '@tollward/testkit'
import axe from 'axe-core'
import jsqr from 'jsqr'
import puppeteer, { type Browser, type Page } from 'puppeteer-core'
import { type Replica, type ShownInvoice, TestStack } from './test-stack.ts'

const CHROMIUM = '/usr/bin/chromium'
const NAVIGATION_TIMEOUT_MS = 20_000
/** Streams look twice a second, and every five seconds for what only a clock changes. */
const SHOWN_TIMEOUT_MS = 30_000

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
const skipBrowser = skip || (await requires({ files: [CHROMIUM] }))
const resources = new AsyncDisposableStack()

let stack: TestStack
let replica: Replica
let browser: Browser

before(async () => {
  if (skip) return
  stack = resources.use(await TestStack.start())
  replica = resources.use(await stack.replica())
  if (skipBrowser) return
  const directory = resources.use(await temporaryDirectory())
  browser = await puppeteer.launch({
    executablePath: CHROMIUM,
    protocolTimeout: NAVIGATION_TIMEOUT_MS,
    userDataDir: directory.path,
    args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
  })
  resources.defer(() => browser.close())
})

after(() => resources.disposeAsync())

interface ShownPlan {
  readonly name: string
  readonly priceSats: string
  readonly listPriceSats?: string
  readonly discounts?: readonly unknown[]
}

async function plans(client?: string): Promise<ShownPlan[]> {
  const response = await replica.request('GET', '/plans', client)
  assert.equal(response.status, 200)
  return ((await response.json()) as { plans: ShownPlan[] }).plans
}

/** What a stream of events tells, one after the other. */
async function* told(response: Response): AsyncGenerator<string> {
  let rest = ''
  for await (const chunk of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
    const blocks = (rest + chunk).split('\n\n')
    rest = blocks.pop() ?? ''
    for (const block of blocks) {
      if (block.startsWith('event: invoice\n')) yield block.replace('event: invoice\n', '').replace(/^data: /gm, '')
    }
  }
}

interface Watching extends AsyncDisposable {
  readonly response: Response
  /** The first thing told from now on that is so. */
  next(isWanted: (text: string) => boolean): Promise<string>
}

async function watch(url: string, client?: string): Promise<Watching> {
  const ending = new AbortController()
  const authorization = client === undefined ? {} : { authorization: `Bearer token-${client}` }
  const response = await fetch(url, {
    headers: { accept: 'text/event-stream', ...authorization },
    signal: AbortSignal.any([ending.signal, AbortSignal.timeout(60_000)]),
  })
  const events = told(response)
  return {
    response,
    next: async (isWanted) => {
      for (let event = await events.next(); !event.done; event = await events.next()) {
        if (isWanted(event.value)) return event.value
      }
      return assert.fail('the stream ended')
    },
    [Symbol.asyncDispose]: async () => ending.abort(),
  }
}

const isState = (state: string) => (text: string) => (JSON.parse(text) as ShownInvoice).state === state

async function newPage({ scripts }: { scripts: boolean }): Promise<Page & AsyncDisposable> {
  const context = await browser.createBrowserContext()
  const page = await context.newPage()
  page.setDefaultTimeout(NAVIGATION_TIMEOUT_MS)
  await page.setJavaScriptEnabled(scripts)
  return Object.assign(page, { [Symbol.asyncDispose]: () => context.close() })
}

async function valueIn<T>(page: Page, expression: string): Promise<T> {
  return (await page.evaluate(expression)) as T
}

function textOf(page: Page): Promise<string> {
  return valueIn(page, 'document.body.innerText')
}

/** Waits until the page says so by itself. */
async function says(page: Page, words: string): Promise<void> {
  await eventually(
    async () => (await valueIn<string>(page, "document.querySelector('#state').innerText")).includes(words),
    {
      what: `the page says "${words}"`,
      timeoutMs: SHOWN_TIMEOUT_MS,
    },
  )
}

/** What a camera reads from the page's QR code. */
async function scanned(page: Page): Promise<string | undefined> {
  const code = await page.$('svg.qr')
  assert.ok(code)
  const image = await code.screenshot({ encoding: 'base64' })
  await using reader = await newPage({ scripts: true })
  const pixels = await valueIn<{ data: number[]; width: number; height: number }>(
    reader,
    `(async () => {
      const image = new Image()
      image.src = 'data:image/png;base64,${image}'
      await image.decode()
      const { width, height } = image
      const canvas = new OffscreenCanvas(width, height).getContext('2d')
      canvas.drawImage(image, 0, 0)
      return { width, height, data: [...canvas.getImageData(0, 0, width, height).data] }
    })()`,
  )
  return jsqr.default(Uint8ClampedArray.from(pixels.data), pixels.width, pixels.height)?.data
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
    assert.deepEqual(await valueIn(page, run), [], value)
  }
}

test('whoever has the address of a page can pay the invoice with any wallet, without scripts', {
  skip: skipBrowser,
}, async () => {
  const invoice = await replica.open('alice', 'cheap')
  await using page = await newPage({ scripts: false })
  const response = await page.goto(invoice.pageUrl)
  assert.equal(response?.status(), 200)
  const headers = response?.headers() ?? {}
  assert.equal(headers['cache-control'], 'no-store')
  assert.equal(headers['referrer-policy'], 'no-referrer')
  assert.match(
    headers['content-security-policy'] ?? '',
    /^default-src 'none'; base-uri 'none'; frame-ancestors 'none'; /,
  )
  assert.doesNotMatch(headers['content-security-policy'] ?? '', /unsafe|\*|https?:/)
  const text = await textOf(page)
  const payBy = `${invoice.payBy.slice(0, 19).replace('T', ' ')} UTC`
  for (const said of [
    '0.00009 BTC',
    '9\u202f000 sats',
    invoice.address,
    payBy,
    'cheap',
    '10\u202f000 sats',
    'Waiting for your payment',
  ])
    assert.ok(text.includes(said), `${said} in ${text}`)
  assert.equal(await valueIn(page, "document.querySelector('a[href^=bitcoin]').href"), invoice.uri)
  assert.equal(await scanned(page), invoice.uri)
  await stack.pay(invoice)
  await replica.reaches('alice', invoice.id, 'seen')
  await Promise.all([page.waitForNavigation(), page.click('#again a')])
  assert.match(await textOf(page), /Payment seen/)
  assert.equal(await page.$('svg.qr'), null, 'nobody is asked to pay twice')
})

test('a page tells of payment, confirmation and use by itself, and keeps nobody out', {
  skip: skipBrowser,
}, async () => {
  const invoice = await replica.open('bob', 'three')
  await using page = await newPage({ scripts: true })
  const troubles: string[] = []
  page.on('console', (message) => troubles.push(message.text()))
  page.on('pageerror', (error) => troubles.push(String(error)))
  await page.goto(invoice.pageUrl)
  await says(page, 'Waiting for your payment')
  await assertAccessible(page)
  await eventually(async () => /Pay by .* UTC \(in 1\d min \d+ s\)/.test(await textOf(page)), {
    what: 'the clock is shown',
  })
  const txid = await stack.pay(invoice)
  await says(page, 'Payment seen')
  assert.equal(await page.$('svg.qr'), null, 'nobody is asked to pay twice')
  assert.ok((await textOf(page)).includes(txid))
  await stack.node.mine(1)
  await says(page, 'Payment is being confirmed')
  await eventually(async () => (await textOf(page)).includes('1 of 3'), { what: 'confirmations are counted' })
  await stack.node.mine(2)
  await says(page, 'Paid')
  await assertAccessible(page)
  const redeemed = async () => (await stack.verifier.redeem({ clientId: 'bob', plan: 'three', txid })).pass
  await eventually(redeemed, { what: 'the pass is there' })
  await says(page, 'Paid and in use')
  assert.deepEqual(troubles, [], 'the policy of the page was in nobody’s way')
})

test('a page goes on by itself when the service was away', { skip: skipBrowser }, async () => {
  await using restarted = await stack.replica()
  const invoice = await restarted.open('erin', 'orders')
  await using page = await newPage({ scripts: true })
  await page.goto(invoice.pageUrl)
  await says(page, 'Waiting for your payment')
  await restarted.service.kill()
  await stack.pay(invoice)
  await restarted.service.start()
  await says(page, 'Payment seen')
})

test('of an amount that was paid in part the rest is asked for', { skip: skipBrowser }, async () => {
  const invoice = await replica.open('carol', 'orders')
  await stack.pay(invoice, 4_000n)
  const short = await replica.reaches('carol', invoice.id, 'underpaid')
  assert.equal(short.toPaySats, '6000')
  await using page = await newPage({ scripts: false })
  await page.goto(invoice.pageUrl)
  assert.match(await textOf(page), /Too little was paid/)
  assert.equal(await scanned(page), `bitcoin:${invoice.address}?amount=0.00006&label=orders`)
  await stack.pay(short)
  const paid = await replica.reaches('carol', invoice.id, 'seen')
  assert.equal(paid.toPaySats, '0')
  // Nodes would not relay less than dust.
  const almost = await replica.open('carol', 'orders')
  await stack.pay(almost, 9_900n)
  assert.equal((await replica.reaches('carol', almost.id, 'underpaid')).toPaySats, '546')
})

test('an owner hears of every state of its invoice as it comes, and nobody else does', { skip }, async () => {
  const invoice = await replica.open('dave', 'orders')
  await using watching = await watch(invoice.url, 'dave')
  assert.equal(watching.response.status, 200)
  assert.match(watching.response.headers.get('content-type') ?? '', /^text\/event-stream/)
  assert.equal(watching.response.headers.get('cache-control'), 'no-store')
  assert.deepEqual(JSON.parse(await watching.next(() => true)), await replica.read('dave', invoice.id))
  const txid = await stack.pay(invoice)
  const seen = JSON.parse(await watching.next(isState('seen'))) as ShownInvoice
  assert.equal(seen.payments[0]?.txid, txid)
  await stack.node.mine(1)
  await watching.next(isState('paid'))
  await stack.verifier.redeem({ clientId: 'dave', plan: 'orders', txid })
  await watching.next(isState('redeemed'))
  for (const [client, status] of [
    ['eve', 404],
    [undefined, 401],
  ] as const) {
    await using refused = await watch(invoice.url, client)
    assert.equal(refused.response.status, status)
    assert.equal(refused.response.headers.get('content-type'), 'application/problem+json; charset=utf-8')
  }
})

test('streams of a client and of its pages are limited together, and hinder no other client', { skip }, async () => {
  const invoice = await replica.open('frank', 'orders')
  const other = await replica.open('grace', 'orders')
  await using streams = new AsyncDisposableStack()
  for (let index = 0; index < 20; index += 1) {
    const watching = await watch(index % 2 === 0 ? invoice.url : invoice.pageUrl, index % 2 === 0 ? 'frank' : undefined)
    assert.equal(streams.use(watching).response.status, 200)
  }
  for (const [url, client] of [
    [invoice.url, 'frank'],
    [invoice.pageUrl, undefined],
  ] as const) {
    await using refused = await watch(url, client)
    assert.equal(refused.response.status, 429)
    assert.ok(Number(refused.response.headers.get('retry-after')) > 0)
  }
  await using unhindered = await watch(other.url, 'grace')
  assert.equal(unhindered.response.status, 200)
  assert.equal((await replica.read('frank', invoice.id)).state, 'issued', 'without a stream it is told')
  await streams.disposeAsync()
  const again = async () => {
    await using watching = await watch(invoice.url, 'frank')
    return watching.response.status === 200
  }
  await eventually(again, { what: 'what ended makes room' })
})

test('a page that is nobody’s is not there, whatever its address', { skip }, async () => {
  for (const key of ['', 'x', '__proto__', '%00', '..%2finvoices', 'A'.repeat(22), 'A'.repeat(2_000)]) {
    const response = await fetch(`${replica.url}/pay/${key}`)
    const text = await response.text()
    assert.equal(response.status, 404, key)
    assert.match(response.headers.get('content-type') ?? '', /^text\/html/)
    assert.match(response.headers.get('content-security-policy') ?? '', /^default-src 'none'/)
    assert.doesNotMatch(text, /<script/)
  }
  assert.equal((await replica.request('GET', `/invoices/${'A'.repeat(2_000)}`, 'alice')).status, 404)
  await using refused = await watch(`${replica.url}/pay/${'A'.repeat(22)}`)
  assert.equal(refused.response.status, 404)
})

test('a plan is shown at its price for whoever asks, and the invoice keeps that price and says why', {
  skip,
}, async () => {
  const found = async (client?: string) => (await plans(client)).find(({ name }) => name === 'cheap')
  const forNobody = await found()
  assert.deepEqual([forNobody?.priceSats, forNobody?.listPriceSats], ['10000', undefined])
  const discounts = [{ kind: 'bitcoin', basisPoints: 1000, amountSats: '1000' }]
  const forClient = await found('heidi')
  assert.deepEqual([forClient?.priceSats, forClient?.listPriceSats, forClient?.discounts], ['9000', '10000', discounts])
  const quote = await stack.verifier.quote({ clientId: 'heidi', plan: 'cheap' })
  assert.deepEqual([quote.isSold, quote.priceSats, quote.invoicesUrl], [true, 9_000n, `${replica.url}/invoices`])
  const invoice = await replica.open('heidi', 'cheap')
  assert.deepEqual([invoice.amountSats, invoice.listPriceSats, invoice.discounts], ['9000', '10000', discounts])
  assert.equal((await replica.request('GET', '/plans', ' x')).status, 401, 'a bad token is no stranger')
})

test('what was paid too much is credit, which the next order uses unless it says not to', { skip }, async () => {
  const credit = async () => await (await replica.request('GET', '/credit', 'ivan')).json()
  assert.deepEqual(await credit(), { balanceSats: '0', grantedSats: '0', spentSats: '0', adjustedSats: '0' })
  const invoice = await replica.open('ivan', 'orders')
  await stack.pay(invoice, 14_000n)
  await stack.node.mine(1)
  const paid = await replica.reaches('ivan', invoice.id, 'overpaid')
  assert.equal(paid.creditedSats, '4000')
  assert.deepEqual(await credit(), { balanceSats: '4000', grantedSats: '4000', spentSats: '0', adjustedSats: '0' })
  assert.equal((await stack.verifier.quote({ clientId: 'ivan', plan: 'orders' })).creditSats, 4_000n)
  const ordered = async (body: object) =>
    (await (await replica.request('POST', '/invoices', 'ivan', { plan: 'orders', ...body })).json()) as ShownInvoice
  const without = await ordered({ useCredit: false })
  assert.deepEqual([without.amountSats, without.creditUsedSats], ['10000', '0'])
  const having = await ordered({})
  assert.deepEqual([having.amountSats, having.creditUsedSats, having.toPaySats], ['6000', '4000', '6000'])
  assert.deepEqual(await credit(), { balanceSats: '0', grantedSats: '4000', spentSats: '4000', adjustedSats: '0' })
  assert.equal((await replica.request('GET', '/credit')).status, 401)
})

test('a service that stops ends its streams and does not wait for their readers', { skip }, async () => {
  await using stopped = await stack.replica()
  const invoice = await stopped.open('judy', 'orders')
  await using watching = await watch(invoice.url, 'judy')
  assert.equal(watching.response.status, 200)
  await watching.next(isState('issued'))
  assert.equal(await stopped.service.stop(), 0)
  await assert.rejects(
    watching.next(() => false),
    /the stream ended/,
  )
})
