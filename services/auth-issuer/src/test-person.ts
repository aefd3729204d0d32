import assert from 'node:assert/strict'
import { hash, randomBytes } from 'node:crypto'
import type { Bus } from '@tollward/bus'
import { UserService } from '@tollward/contracts/token'

export const PASSWORD = 'correct horse battery'

/** Where the client of a code waits; nobody listens there. */
export const REDIRECT_URI = 'http://127.0.0.1/callback'

/** What the Client document of an app without secret says, for which people consent. */
export const CODE_CLIENT = {
  grants: ['authorization_code', 'refresh_token'],
  redirectUris: [REDIRECT_URI],
  authentication: 'none',
  scopes: ['orders'],
}

/** More pages and redirects than any sign-in takes. */
const STEPS_MAX = 12

const NAME = 'ann'

/** Makes the person who signs in with `browse`, and returns their subject. */
export async function createPerson(bus: Bus): Promise<string> {
  const { user } = await bus.client(UserService).createUser({ name: NAME, password: PASSWORD })
  assert(user)
  return user.subject
}

/** Parameters of an authorization request with PKCE, and the verifier that its code is good with. */
export function authorizationRequest(clientId: string, more: Record<string, string> = {}) {
  const verifier = randomBytes(32).toString('base64url')
  const parameters = {
    client_id: clientId,
    response_type: 'code',
    redirect_uri: REDIRECT_URI,
    scope: 'openid orders',
    state: 's',
    code_challenge: hash('sha256', verifier, 'base64url'),
    code_challenge_method: 'S256',
    ...more,
  }
  return { verifier, parameters }
}

/**
 * A browser without scripts: follows redirects, keeps cookies, signs in and consents as often as it is asked to. Returns what
 * it brings to the client; a page that asks for nothing is an error with the page's status.
 */
export async function browse(
  issuerUrl: string,
  parameters: Record<string, string>,
  cookies = new Map<string, string>(),
): Promise<URLSearchParams> {
  let url = new URL(`${issuerUrl}/auth?${new URLSearchParams(parameters)}`)
  let body: URLSearchParams | undefined
  for (let step = 0; step < STEPS_MAX; step++) {
    const cookie = [...cookies].map(([name, value]) => `${name}=${value}`).join('; ')
    const headers = { accept: 'text/html', origin: issuerUrl, cookie }
    const response = await fetch(url, { redirect: 'manual', headers, ...(body && { method: 'POST', body }) })
    keepCookies(cookies, response)
    const text = await response.text()
    const location = response.headers.get('location')
    body = undefined
    if (location !== null) {
      url = new URL(location, url)
      if (url.href.startsWith(REDIRECT_URI)) return url.searchParams
      continue
    }
    const form = /name="form" value="([^"]+)"/.exec(text)?.[1]
    assert(response.status === 200 && form !== undefined, `${response.status} ${text}`)
    const fields = text.includes('name="password"') ? { name: NAME, password: PASSWORD } : { decision: 'allow' }
    body = new URLSearchParams({ form, ...fields })
  }
  throw new Error(`no end of it at ${url}`)
}

function keepCookies(cookies: Map<string, string>, response: Response): void {
  for (const line of response.headers.getSetCookie()) {
    const [, name = '', value = ''] = /^([^=]+)=([^;]*)/.exec(line) ?? []
    if (value === '') cookies.delete(name)
    else cookies.set(name, value)
  }
}

/** A code, and what it takes to redeem it. */
export interface Authorization {
  code: string
  verifier: string
}

/** Gets a code, which has to come with the request's state and the issuer's identifier (RFC 9207). */
export async function authorize(
  issuerUrl: string,
  clientId: string,
  more: Record<string, string> = {},
  cookies?: Map<string, string>,
): Promise<Authorization> {
  const { verifier, parameters } = authorizationRequest(clientId, more)
  const answer = await browse(issuerUrl, parameters, cookies)
  const code = answer.get('code')
  assert(code !== null, String(answer))
  assert.equal(answer.get('state'), parameters.state)
  assert.equal(answer.get('iss'), issuerUrl)
  return { code, verifier }
}

/** The form of the token endpoint for a code. */
export function redemption(clientId: string, { code, verifier }: Authorization): Record<string, string> {
  return {
    grant_type: 'authorization_code',
    client_id: clientId,
    code,
    code_verifier: verifier,
    redirect_uri: REDIRECT_URI,
  }
}

/** The form of the token endpoint for a refresh token. */
export function refreshing(clientId: string, refreshToken = ''): Record<string, string> {
  return { grant_type: 'refresh_token', client_id: clientId, refresh_token: refreshToken }
}
