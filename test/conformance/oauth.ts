import assert from 'node:assert/strict'

/** What an endpoint answered. */
export interface Answer {
  readonly status: number
  readonly headers: Headers
  readonly text: string
  /** The body, where it is a JSON object. */
  readonly json: Readonly<Record<string, unknown>>
}

/** Parts of an answer that would show how we are built. */
const STACK_TRACE = /\bat .+:\d+:\d+|node_modules|node:internal|\.(?:ts|js):\d+|FST_|ERR_[A-Z]|NatsError|JetStream/

/** client_secret_basic as RFC 6749, section 2.3.1 writes it. */
export function basic(clientId: string, secret: string): { authorization: string } {
  const encoded = [clientId, secret].map((part) => encodeURIComponent(part)).join(':')
  return { authorization: `Basic ${Buffer.from(encoded).toString('base64')}` }
}

type Parameters = Readonly<Record<string, string>> | readonly (readonly [string, string])[]

/** Posts a form. */
export function postForm(url: string, parameters: Parameters, headers: Record<string, string> = {}): Promise<Answer> {
  const pairs: Iterable<readonly [string, string]> = isPairs(parameters) ? parameters : Object.entries(parameters)
  const body = new URLSearchParams()
  for (const [name, value] of pairs) body.append(name, value)
  return ask(url, { method: 'POST', headers, body })
}

/** Sends any request, and follows nothing. */
export async function ask(url: string, init: RequestInit = {}): Promise<Answer> {
  const response = await fetch(url, { redirect: 'manual', ...init })
  const text = await response.text()
  return { status: response.status, headers: response.headers, text, json: parsed(text) }
}

/** Whether this is an error as RFC 6749, section 5.2 writes it, and tells nothing else. */
export function assertOAuthError(answer: Answer, error: string | RegExp, status?: number): void {
  const seen = `${answer.status} ${answer.text}`
  assert.ok(answer.status >= 400 && answer.status < 500, seen)
  if (status !== undefined) assert.equal(answer.status, status, seen)
  const said = answer.json.error
  assert.equal(typeof said, 'string', seen)
  if (typeof error === 'string') assert.equal(said, error, seen)
  else assert.match(String(said), error, seen)
  assertNoStackTrace(answer.text)
  assert.equal(answer.json.access_token, undefined, seen)
}

export function assertNoStackTrace(text: string): void {
  assert.doesNotMatch(text, STACK_TRACE)
}

function isPairs(parameters: Parameters): parameters is readonly (readonly [string, string])[] {
  return Array.isArray(parameters)
}

function parsed(text: string): Readonly<Record<string, unknown>> {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
  } catch (error) {
    if (error instanceof SyntaxError) return {}
    throw error
  }
}
