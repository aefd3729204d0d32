import { createHmac, hash, randomUUID } from 'node:crypto'
import { type CryptoKey, exportJWK, generateKeyPair, type JWK, SignJWT } from 'jose'

/** A key pair with its public part as JWK. */
export interface Keys {
  readonly privateKey: CryptoKey
  readonly publicJwk: JWK
}

export async function makeKeys(alg: 'ES256' | 'EdDSA' = 'ES256'): Promise<Keys> {
  const { privateKey, publicKey } = await generateKeyPair(alg, { extractable: true })
  return { privateKey, publicJwk: await exportJWK(publicKey) }
}

/** A compact JWT that jose would not make: its header and signature are whatever they are. */
export function forged(header: object, claims: object, signature: string | ((input: string) => string)): string {
  const input = [header, claims].map((part) => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.')
  return `${input}.${typeof signature === 'string' ? signature : signature(input)}`
}

/** HMAC-SHA-256 under a text: for confusions of a public key with a secret. */
export function hs256(secret: string): (input: string) => string {
  return (input) => createHmac('sha256', secret).update(input).digest('base64url')
}

export function nowSeconds(): number {
  return Math.floor(Date.now() / 1000)
}

/** What a DPoP proof says; each can be made wrong. */
export interface Proof {
  readonly htm?: string
  readonly htu: string
  readonly nonce?: string
  /** Of this access token its hash. */
  readonly token?: string
  readonly claims?: object
  readonly header?: object
}

/** A DPoP proof (RFC 9449, section 4.2). */
export async function dpopProof(
  keys: Keys,
  { htm = 'POST', htu, nonce, token, claims, header }: Proof,
): Promise<string> {
  const ath = token === undefined ? {} : { ath: hash('sha256', token, 'base64url') }
  const payload = { jti: randomUUID(), htm, htu, iat: nowSeconds(), ...(nonce === undefined ? {} : { nonce }), ...ath }
  return await new SignJWT({ ...payload, ...claims })
    .setProtectedHeader({ typ: 'dpop+jwt', alg: 'ES256', jwk: keys.publicJwk, ...header })
    .sign(keys.privateKey)
}
