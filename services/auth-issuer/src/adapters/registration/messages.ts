import type { IncomingMessage } from 'node:http'
import { AppError } from '@tollward/errors'

/** Metadata of a client with some keys are a few thousand bytes. */
const BODY_BYTES_MAX = 16_384

/** RFC 6750's b64token. */
const BEARER = /^Bearer +([A-Za-z0-9\-._~+/]+=*)$/i

/** Ours have 43 characters. */
const TOKEN_CHARACTERS_MAX = 512

const DESCRIPTION_CHARACTERS_MAX = 1000

/** With 503: nothing that makes us unavailable heals faster. */
const UNAVAILABLE_RETRY_SECONDS = 1

/** What a client gets: JSON, or nothing but the status. */
export interface Answer {
  readonly status: number
  readonly body?: Readonly<Record<string, unknown>>
  readonly headers?: Readonly<Record<string, string>>
}

/** A refusal as RFC 7591, section 3.2.2 and RFC 6750, section 3 write it. */
export class Refusal extends Error {
  readonly status: number
  readonly error: string
  readonly headers: Readonly<Record<string, string>>

  constructor(status: number, error: string, description: string, headers: Readonly<Record<string, string>> = {}) {
    super(description)
    this.status = status
    this.error = error
    this.headers = headers
  }
}

/** Whoever may do this has a token that we do not know, or none. */
export function unauthenticated(description: string, realm: string, given: boolean): Refusal {
  const challenge = `Bearer realm="${realm}"${given ? ', error="invalid_token"' : ''}`
  return new Refusal(401, 'invalid_token', description, { 'www-authenticate': challenge })
}

/** What is answered where this was thrown. */
export function answerOf(thrown: unknown): Answer {
  if (thrown instanceof Refusal) {
    const { status, error, message, headers } = thrown
    return { status, body: { error, error_description: ascii(message) }, headers }
  }
  if (thrown instanceof AppError && (thrown.code === 'unavailable' || thrown.code === 'deadline_exceeded')) {
    const description = 'Clients cannot be reached at the moment; try again in a second.'
    const headers = { 'retry-after': String(UNAVAILABLE_RETRY_SECONDS) }
    return { status: 503, body: { error: 'temporarily_unavailable', error_description: description }, headers }
  }
  const description = 'Something went wrong on our side; try again later.'
  return { status: 500, body: { error: 'server_error', error_description: description } }
}

/** The bearer token of a request; empty: what is there is none. Undefined: nothing is there. */
export function bearerOf({ headers }: IncomingMessage): string | undefined {
  if (headers.authorization === undefined) return undefined
  const token = BEARER.exec(headers.authorization)?.[1] ?? ''
  return token.length > TOKEN_CHARACTERS_MAX ? '' : token
}

/** The JSON object of a request's body. Throws a Refusal. */
export async function jsonBody(request: IncomingMessage): Promise<Record<string, unknown>> {
  if (!/^application\/json\s*(;|$)/i.test(request.headers['content-type'] ?? '')) {
    throw malformed('Send client metadata as application/json.')
  }
  const chunks: Buffer[] = []
  let received = 0
  for await (const chunk of request) {
    received += chunk.length
    if (received > BODY_BYTES_MAX) {
      const description = `The body may have at most ${BODY_BYTES_MAX} bytes.`
      throw new Refusal(413, 'invalid_client_metadata', description, { connection: 'close' })
    }
    chunks.push(chunk)
  }
  try {
    const body: unknown = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks)))
    if (typeof body === 'object' && body !== null && !Array.isArray(body)) return { ...body }
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error
  }
  throw malformed('The body has to be a JSON object.')
}

function malformed(description: string): Refusal {
  return new Refusal(400, 'invalid_client_metadata', description)
}

/** RFC 7591, section 3.2.2: ASCII text. */
function ascii(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, '?').slice(0, DESCRIPTION_CHARACTERS_MAX)
}
