import type { Fault } from './target.ts'

/** Header fields as they came: name, value, name, value, and so on; duplicates unjoined where the proxy lets us see them. */
export type HeaderList = readonly string[]

/** What a decision reads from the header fields, and which of them must not reach the API. */
export interface Fields {
  /** Of scheme Bearer or DPoP; undefined where there was no Authorization or one of another scheme, empty where it is no token. */
  readonly token: string | undefined
  readonly scheme: 'bearer' | 'dpop'
  /** The DPoP header; false where there was more than one, or one that is longer than any proof. */
  readonly proof: string | undefined | false
  /** 64 lower-case hexadecimal digits. */
  readonly txid: string | undefined
  /** Names, as sent but in lower case, of fields that claim to be ours, or name another path or method than the request's. */
  readonly strays: readonly string[]
}

/** All header fields with their names, as Node counts them too; Envoy's own default is 60 KiB. */
export const HEADER_BYTES_MAX = 32 * 1024
/** Envoy's default. */
export const HEADER_FIELDS_MAX = 100
/** An opaque token has some 40 characters; a JWT as token may have a few thousand. */
const TOKEN_BYTES_MAX = 4096
/** A DPoP proof has some 500 characters. */
const PROOF_BYTES_MAX = 4096

export const IDENTITY_PREFIX = 'x-tollward-'
export const TXID_HEADER = 'x-bitcoin-txid'
export const PROOF_HEADER = 'dpop'

const NONE: readonly string[] = []

/**
 * Reads what a decision needs, or says why these fields cannot be decided about. Only schemes Bearer (RFC 6750, 2.1)
 * and DPoP (RFC 9449, 7.1) count as credentials.
 */
export function readFields(headers: HeaderList): Fields | Fault | 'too-large' {
  if (headers.length > HEADER_FIELDS_MAX * 2) return 'too-large'
  let authorization: string | undefined
  let txid: string | undefined
  let proof: string | undefined | false
  let strays: string[] | undefined
  let bytes = 0
  for (let index = 0; index < headers.length; index += 2) {
    const sent = headers[index] ?? ''
    const value = headers[index + 1] ?? ''
    bytes += sent.length + value.length
    const name = sent.toLowerCase()
    if (name === 'authorization') {
      if (authorization !== undefined || SECOND_CREDENTIAL.test(value)) return 'authorization-ambiguous'
      authorization = value
    } else if (name === TXID_HEADER) {
      if (txid !== undefined || !/^[0-9A-Fa-f]{64}$/.test(value)) return 'txid-malformed'
      txid = value.toLowerCase()
    } else if (name === PROOF_HEADER) {
      const isOne = proof === undefined && value.length <= PROOF_BYTES_MAX && !value.includes(',')
      proof = isOne ? value : false
    } else if (name === 'connection') {
      if (nominatesOurs(value)) return 'header-connection'
    } else if (isOurs(name) || isOverride(name)) {
      strays ??= []
      if (!strays.includes(name)) strays.push(name)
    }
  }
  if (bytes > HEADER_BYTES_MAX) return 'too-large'
  const credential = authorization === undefined ? NO_CREDENTIAL : readCredential(authorization)
  if (credential === 'too-large') return credential
  return { token: credential.token, scheme: credential.scheme, txid, proof, strays: strays ?? NONE }
}

/**
 * The one value of a header that rules compare, its name in lower case; undefined where it is absent, false where it came more than
 * once, or under a name that some servers take for the same (CGI variables: "_" for "-").
 */
export function singleValue(headers: HeaderList, name: string): string | undefined | false {
  let found: string | undefined
  for (let index = 0; index < headers.length; index += 2) {
    const sent = headers[index] ?? ''
    if (sent.length !== name.length) continue
    const lower = sent.toLowerCase()
    if (lower !== name) {
      if (sameVariable(lower, name)) return false
      continue
    }
    if (found !== undefined) return false
    found = headers[index + 1] ?? ''
  }
  return found
}

/** Whether servers that make variables of header names, both in lower case, take these two for one. */
export function sameVariable(one: string, other: string): boolean {
  return one.length === other.length && one.replaceAll('_', '-') === other.replaceAll('_', '-')
}

/** Whether one of several values that a proxy may have joined by commas is as wanted. */
export function joinedHas(value: string, isAsWanted: (text: string) => boolean): boolean {
  return value.includes(',') && value.split(',').some((element) => isAsWanted(element.trim()))
}

/** A proxy may have joined two fields with a comma; other schemes than ours have commas of their own (RFC 9110, 11.4). */
const SECOND_CREDENTIAL = /^\s*(?:bearer|dpop)\b.*,|,\s*(?:bearer|dpop)\b/i

/** As both RFCs have it, with the spaces that may precede it. */
const B64TOKEN = /^ *([A-Za-z0-9._~+/-]+=*) *$/

const NO_CREDENTIAL = { token: undefined, scheme: 'bearer' } as const

function readCredential(authorization: string): Pick<Fields, 'token' | 'scheme'> | 'too-large' {
  if (authorization.length > TOKEN_BYTES_MAX) return 'too-large'
  const space = authorization.indexOf(' ')
  const scheme = (space < 0 ? authorization : authorization.slice(0, space)).toLowerCase()
  if (scheme !== 'bearer' && scheme !== 'dpop') return NO_CREDENTIAL
  // Anything else can't be one of our tokens, and is not worth asking anybody about.
  const token = space < 0 ? undefined : B64TOKEN.exec(authorization.slice(space))?.[1]
  return { token: token ?? '', scheme }
}

/** By these some servers take another path or method than the one that is decided about. */
export const OVERRIDE_HEADERS: ReadonlySet<string> = new Set([
  'x-original-url',
  'x-original-uri',
  'x-rewrite-url',
  'x-http-method',
  'x-http-method-override',
  'x-method-override',
])

function isOverride(name: string): boolean {
  if (!name.startsWith('x')) return false
  return OVERRIDE_HEADERS.has(name.includes('_') ? name.replaceAll('_', '-') : name)
}

/** Some servers read "_" in a name as "-" (CGI variables), so both spellings are ours. */
function isOurs(name: string): boolean {
  if (!name.startsWith('x')) return false
  const dashed = name.includes('_') ? name.replaceAll('_', '-') : name
  return dashed.startsWith(IDENTITY_PREFIX) || (dashed !== name && dashed === TXID_HEADER)
}

/** A field named in Connection is dropped at the next hop (RFC 9110, 7.6.1): so a client could drop what we add. */
function nominatesOurs(connection: string): boolean {
  return options(connection).some((name) => name === 'authorization' || name === TXID_HEADER || isOurs(name))
}

function options(connection: string): string[] {
  return connection
    .toLowerCase()
    .split(',')
    .map((option) => option.trim())
}

/** Names, in lower case, of the fields that Connection has dropped on the way to the API. */
export function nominated(headers: HeaderList): ReadonlySet<string> {
  let found: Set<string> | undefined
  for (let index = 0; index < headers.length; index += 2) {
    const name = headers[index] ?? ''
    if (name.length !== 'connection'.length || name.toLowerCase() !== 'connection') continue
    found ??= new Set()
    for (const option of options(headers[index + 1] ?? '')) found.add(option)
  }
  return found ?? NOT_NOMINATED
}

const NOT_NOMINATED: ReadonlySet<string> = new Set()
