import assert from 'node:assert/strict'
import { setTimeout as pause } from 'node:timers/promises'
import { type Answer, type Request, send } from './http.ts'

/** Where the local stack listens; the contract of deploy/local. */
export const LOCAL = {
  gateway: 'http://127.0.0.1:8080',
  issuer: 'http://127.0.0.1:4000',
  verifier: 'http://127.0.0.1:4020',
  forwardAuth: 'http://127.0.0.1:9192/forward-auth',
  sensorMetrics: 'http://127.0.0.1:9406/metrics',
} as const

const ORDER_TRIES_MAX = 5

/** An invoice as payment-verifier shows it. */
export interface Invoice {
  readonly id: string
  readonly uri: string
  readonly address: string
  readonly listPriceSats: string
  readonly creditUsedSats: string
  readonly amountSats: string
  readonly pageUrl: string
  readonly state: string
}

/** Sends a request and may show it. */
export type Send = (url: string, options?: Request) => Promise<Answer>

/** One client of the protected API: gets tokens, buys passes, calls. */
export class Customer {
  readonly clientId: string
  readonly #secret: string
  readonly #send: Send
  /** Address of this machine that the customer calls from. */
  readonly #from: string | undefined
  #token = ''
  txid: string | undefined

  constructor(clientId: string, secret: string, options: { send?: Send; from?: string } = {}) {
    this.clientId = clientId
    this.#secret = secret
    this.#send = options.send ?? send
    this.#from = options.from
  }

  get token(): string {
    return this.#token
  }

  /** The same customer, whose calls nobody shows. */
  quiet(): Customer {
    const same = new Customer(this.clientId, this.#secret, this.#from === undefined ? {} : { from: this.#from })
    same.#token = this.#token
    same.txid = this.txid
    return same
  }

  /** OAuth 2 client credentials (RFC 6749, 4.4). */
  async getToken(): Promise<string> {
    const { status, body } = await this.#post(`${LOCAL.issuer}/token`, { grant_type: 'client_credentials' })
    assert.equal(status, 200, `the issuer gave no token: ${body}`)
    const { access_token } = JSON.parse(body) as { access_token: string }
    this.#token = access_token
    return access_token
  }

  /** Ends its token (RFC 7009). */
  giveUp(revocationEndpoint: string): Promise<Answer> {
    return this.#post(revocationEndpoint, { token: this.#token })
  }

  /** A form, with the client's credential. */
  #post(url: string, form: Readonly<Record<string, string>>): Promise<Answer> {
    return this.#send(url, {
      method: 'POST',
      headers: {
        authorization: `Basic ${Buffer.from(`${this.clientId}:${this.#secret}`).toString('base64')}`,
        'content-type': 'application/x-www-form-urlencoded',
      },
      body: new URLSearchParams(form).toString(),
    })
  }

  /** Asks for an invoice; a 402 never makes one by itself. */
  async getInvoice(plan: string): Promise<Invoice> {
    const order = () =>
      this.#send(`${LOCAL.verifier}/invoices`, {
        method: 'POST',
        headers: { authorization: `Bearer ${this.#token}`, 'content-type': 'application/json' },
        body: JSON.stringify({ plan }),
      })
    let answer = await order()
    // While a block is being looked at, orders are asked to come again.
    for (let tries = 1; answer.status === 503 && tries < ORDER_TRIES_MAX; tries++) {
      await pause(Number(answer.headers['retry-after'] ?? 1) * 1000)
      answer = await order()
    }
    assert.equal(answer.status, 201, `no invoice: ${answer.body}`)
    return JSON.parse(answer.body) as Invoice
  }

  /** Calls the API with what the customer has: token, and transaction id once there is one. */
  call(url: string, options: Request = {}): Promise<Answer> {
    return this.#send(url, {
      ...options,
      ...(this.#from === undefined ? {} : { from: this.#from }),
      headers: {
        ...(this.#token === '' ? {} : { authorization: `Bearer ${this.#token}` }),
        ...(this.txid === undefined ? {} : { 'x-bitcoin-txid': this.txid }),
        ...options.headers,
      },
    })
  }
}

/** The document of a client that may buy and use the plan `orders`. */
export function clientDocument(name: string): string {
  return `apiVersion: tollward.dev/v1
kind: Client
metadata: { name: ${name} }
spec: { grants: [client_credentials], scopes: [orders] }
`
}
