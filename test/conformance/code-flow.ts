import assert from 'node:assert/strict'
import { hash, randomBytes } from 'node:crypto'
import type { Identity } from '../scenario/identity.ts'
import { type Answer, basic, postForm } from './oauth.ts'
import type { Person } from './person.ts'

export const API = 'https://api.example'
export const CALLBACK = 'https://app.example/callback'

/** The document of a client for people. */
export const FOR_PEOPLE = {
  grants: ['authorization_code', 'refresh_token'],
  redirectUris: [CALLBACK],
  scopes: ['orders', 'stock'],
  audience: [API],
}

const VERIFIER_BYTES = 32

/** A client with its secret; undefined: it has none. */
export interface Caller {
  readonly clientId: string
  readonly secret: string | undefined
}

/** A verifier of PKCE and its challenge (RFC 7636). */
export function pkce(): { verifier: string; challenge: string } {
  const verifier = randomBytes(VERIFIER_BYTES).toString('base64url')
  return { verifier, challenge: hash('sha256', verifier, 'base64url') }
}

/** An authorization request; a parameter that is undefined is left out. */
export function authorizationUrl(
  { issuerUrl }: Pick<Identity, 'issuerUrl'>,
  parameters: Readonly<Record<string, string | undefined>>,
): URL {
  const url = new URL(`${issuerUrl}/auth`)
  const all = { response_type: 'code', redirect_uri: CALLBACK, scope: 'openid orders', resource: API, ...parameters }
  for (const [name, value] of Object.entries(all)) if (value !== undefined) url.searchParams.set(name, value)
  return url
}

/** Has a person authorize the client, and gives the code with its verifier. */
export async function codeOf(
  identity: Pick<Identity, 'issuerUrl'>,
  person: Person,
  clientId: string,
  parameters: Readonly<Record<string, string>> = {},
): Promise<{ code: string; verifier: string }> {
  const { verifier, challenge } = pkce()
  const back = await person.authorize(
    authorizationUrl(identity, {
      client_id: clientId,
      code_challenge: challenge,
      code_challenge_method: 'S256',
      prompt: 'consent',
      ...parameters,
    }),
  )
  const code = back.searchParams.get('code')
  assert.ok(code, `no code: ${back.href}`)
  return { code, verifier }
}

/** Posts to the token endpoint as a client. */
export function tokenRequest(
  { issuerUrl }: Pick<Identity, 'issuerUrl'>,
  { clientId, secret }: Caller,
  parameters: Readonly<Record<string, string>>,
  headers: Readonly<Record<string, string>> = {},
): Promise<Answer> {
  const own = secret === undefined ? { client_id: clientId, ...parameters } : parameters
  return postForm(`${issuerUrl}/token`, own, { ...(secret === undefined ? {} : basic(clientId, secret)), ...headers })
}

/** Tokens of the code flow. */
export interface Tokens {
  readonly accessToken: string
  readonly refreshToken: string
  readonly idToken: string
}

/** The whole flow. */
export async function tokensOf(identity: Pick<Identity, 'issuerUrl'>, person: Person, caller: Caller): Promise<Tokens> {
  const { code, verifier } = await codeOf(identity, person, caller.clientId)
  return tokensIn(await tokenRequest(identity, caller, codeGrant(code, verifier)))
}

export function codeGrant(code: string, verifier: string): Record<string, string> {
  return { grant_type: 'authorization_code', code, code_verifier: verifier, redirect_uri: CALLBACK }
}

export function refreshGrant(refreshToken: string): Record<string, string> {
  return { grant_type: 'refresh_token', refresh_token: refreshToken }
}

export function tokensIn({ status, json, text }: Answer): Tokens {
  assert.equal(status, 200, text)
  const { access_token: accessToken, refresh_token: refreshToken, id_token: idToken } = json
  assert.ok(typeof accessToken === 'string' && typeof refreshToken === 'string', text)
  return { accessToken, refreshToken, idToken: String(idToken ?? '') }
}

/** Whether the issuer takes the access token for something. */
export async function isActive({ issuerRpc }: Pick<Identity, 'issuerRpc'>, token: string): Promise<boolean> {
  return (await issuerRpc.exchange({ token })).info?.active === true
}
