import assert from 'node:assert/strict'

const REDIRECTS_MAX = 12

/** What a person sees: a page of the site, or the address outside of it that the browser was sent to. */
export interface Page {
  readonly url: URL
  readonly status: number
  readonly headers: Headers
  readonly html: string
  readonly forms: readonly Form[]
}

/** A form with the values that it came with. */
export interface Form {
  readonly method: string
  readonly action: URL
  readonly fields: readonly Field[]
}

interface Field {
  readonly tag: string
  readonly type: string
  readonly name: string
  readonly value: string
}

interface Cookie {
  readonly name: string
  readonly value: string
  readonly path: string
}

/**
 * A browser without scripts, for one site: keeps cookies by their path, follows redirects as long as they stay on the site,
 * and sends forms as they are.
 */
export class Browser {
  readonly #origin: string
  #cookies: Cookie[] = []

  constructor(site: string) {
    this.#origin = new URL(site).origin
  }

  get cookies(): readonly Cookie[] {
    return this.#cookies
  }

  async open(address: string | URL): Promise<Page> {
    return await this.#go(new URL(address), { method: 'GET' })
  }

  /** Sends a form with these values over its own; `press` is a part of the button's name or value. */
  async send(form: Form, values: Readonly<Record<string, string>> = {}, press?: string): Promise<Page> {
    const body = new URLSearchParams()
    for (const { tag, type, name, value } of form.fields) {
      const isButton = tag === 'button' || type === 'submit'
      if (name === '' || isButton) continue
      if ((type === 'checkbox' || type === 'radio') && values[name] === undefined) continue
      body.append(name, values[name] ?? value)
    }
    if (press !== undefined) {
      const button = form.fields.find(
        ({ tag, type, name, value }) => (tag === 'button' || type === 'submit') && `${name}=${value}`.includes(press),
      )
      assert.ok(button, `the form has no button "${press}"`)
      if (button.name !== '') body.append(button.name, button.value)
    }
    if (form.method === 'GET') {
      const url = new URL(form.action)
      url.search = body.toString()
      return await this.#go(url, { method: 'GET' })
    }
    return await this.#go(form.action, { method: 'POST', body })
  }

  async #go(first: URL, request: { method: string; body?: URLSearchParams }): Promise<Page> {
    let [url, { method, body }] = [first, request]
    for (let redirects = 0; redirects <= REDIRECTS_MAX; redirects++) {
      const response = await fetch(url, {
        method,
        redirect: 'manual',
        headers: { cookie: this.#cookiesFor(url), accept: 'text/html', origin: this.#origin },
        ...(body === undefined ? {} : { body }),
      })
      this.#remember(response.headers, url)
      const html = await response.text()
      const location = response.headers.get('location')
      if (response.status < 300 || response.status > 399 || location === null) {
        return { url, status: response.status, headers: response.headers, html, forms: formsOf(html, url) }
      }
      url = new URL(location, url)
      if (url.origin !== this.#origin) {
        return { url, status: response.status, headers: response.headers, html: '', forms: [] }
      }
      ;[method, body] = ['GET', undefined]
    }
    throw new Error(`more than ${REDIRECTS_MAX} redirects, the last to ${url.href}`)
  }

  #cookiesFor({ pathname }: URL): string {
    return this.#cookies
      .filter(({ path }) => pathname === path || pathname.startsWith(path.endsWith('/') ? path : `${path}/`))
      .map(({ name, value }) => `${name}=${value}`)
      .join('; ')
  }

  #remember(headers: Headers, url: URL): void {
    for (const line of headers.getSetCookie()) {
      const [pair = '', ...attributes] = line.split(';').map((part) => part.trim())
      const [name = '', value = ''] = [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)]
      const attribute = (wanted: string) =>
        attributes.find((text) => text.toLowerCase().startsWith(`${wanted}=`))?.slice(wanted.length + 1)
      const path = attribute('path') ?? url.pathname.slice(0, Math.max(1, url.pathname.lastIndexOf('/')))
      this.#cookies = this.#cookies.filter((cookie) => cookie.name !== name || cookie.path !== path)
      const expires = attribute('expires')
      const isOver = attribute('max-age') === '0' || (expires !== undefined && Date.parse(expires) <= Date.now())
      if (!isOver) this.#cookies.push({ name, value, path })
    }
  }
}

function formsOf(html: string, url: URL): Form[] {
  return [...html.matchAll(/<form\b([^>]*)>([\s\S]*?)<\/form>/gi)].map(([, attributes = '', content = '']) => {
    const { action, method } = attributesOf(attributes)
    return {
      method: (method ?? 'GET').toUpperCase(),
      action: action === undefined || action === '' ? url : new URL(action, url),
      fields: [...content.matchAll(/<(input|button|select|textarea)\b([^>]*)>/gi)].map(([, tag = '', text = '']) => {
        const { type, name, value } = attributesOf(text)
        return { tag: tag.toLowerCase(), type: (type ?? '').toLowerCase(), name: name ?? '', value: value ?? '' }
      }),
    }
  })
}

function attributesOf(text: string): Record<string, string | undefined> {
  const pairs = [...text.matchAll(/([\w-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')/g)]
  return Object.fromEntries(pairs.map(([, name = '', double, single]) => [name, decoded(double ?? single ?? '')]))
}

const ENTITIES: Readonly<Record<string, string>> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'" }

function decoded(text: string): string {
  return text.replace(/&(?:#(\d+)|#x([\da-f]+)|(\w+));/gi, (whole, decimal, hexadecimal, name) => {
    if (decimal !== undefined) return String.fromCodePoint(Number(decimal))
    if (hexadecimal !== undefined) return String.fromCodePoint(Number.parseInt(hexadecimal, 16))
    return ENTITIES[name] ?? whole
  })
}
