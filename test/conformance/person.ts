import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { UserService } from '@tollward/contracts/token'
import type { Identity } from '../scenario/identity.ts'
import { Browser, type Form, type Page } from './browser.ts'

/** Pages until the browser is sent back: signing in, consent, and what comes between. */
const PAGES_MAX = 6

/** Hashing a password takes long on purpose, and longer on a busy machine. */
const CREATE_MAX_MS = 15_000

/** Somebody with an account and a browser. */
export class Person {
  readonly name: string
  readonly subject: string
  readonly browser: Browser
  readonly #password: string

  constructor(name: string, subject: string, password: string, site: string) {
    this.name = name
    this.subject = subject
    this.#password = password
    this.browser = new Browser(site)
  }

  /** Makes an account, as an operator does. */
  static async create({ bus, issuerUrl }: Pick<Identity, 'bus' | 'issuerUrl'>): Promise<Person> {
    const name = `person-${randomUUID()}`
    const { user, password } = await bus
      .client(UserService, { timeoutMs: CREATE_MAX_MS })
      .createUser({ name, password: '' })
    assert.ok(user && password !== '')
    return new Person(name, user.subject, password, issuerUrl)
  }

  /** Opens an authorization request, signs in and consents where asked to. Gives the address that the browser was sent to. */
  async authorize(url: URL): Promise<URL> {
    const page = await this.through(await this.browser.open(url))
    assert.notEqual(page.url.origin, url.origin, `the person ended at ${page.url.href} (${page.status}): ${page.html}`)
    return page.url
  }

  /** Enters the code that a device shows, and connects the device (RFC 8628, section 3.3). Gives the last page. */
  async connectDevice(address: string, userCode: string): Promise<Page> {
    const page = await this.browser.open(address)
    const form = page.forms.find(({ fields }) => fields.some(({ name }) => name === 'user_code'))
    assert.ok(form, `no form for a code: ${page.html}`)
    return await this.through(await this.browser.send(form, { user_code: userCode }))
  }

  /** Goes on from a page until there is nothing to fill in or to agree to any more. */
  async through(first: Page): Promise<Page> {
    let page = first
    for (let pages = 0; pages < PAGES_MAX; pages++) {
      const next = await this.#answer(page)
      if (next === undefined) return page
      page = next
    }
    throw new Error(`more than ${PAGES_MAX} pages, the last: ${page.url.href} ${page.html}`)
  }

  async #answer(page: Page): Promise<Page | undefined> {
    if (page.status >= 400) return undefined
    const signIn = page.forms.find(({ fields }) => fields.some(({ type }) => type === 'password'))
    if (signIn) {
      const values = {
        [nameOf(signIn, ['text', 'email', ''])]: this.name,
        [nameOf(signIn, ['password'])]: this.#password,
      }
      return await this.browser.send(signIn, values)
    }
    const consent = page.forms.find(({ fields }) => fields.some(({ name, value }) => isAllow(name, value)))
    if (!consent) return undefined
    const button = consent.fields.find(({ name, value }) => isAllow(name, value))
    return await this.browser.send(consent, {}, `${button?.name}=${button?.value}`)
  }
}

function isAllow(name: string, value: string): boolean {
  return /^(allow|accept|approve|yes|confirm)$/i.test(value) || /^(allow|accept|approve)$/i.test(name)
}

function nameOf({ fields }: Form, types: readonly string[]): string {
  const field = fields.find(({ tag, type, name }) => tag === 'input' && types.includes(type) && name !== '')
  assert.ok(field, `the form has no field of type ${types.join(' or ')}`)
  return field.name
}
