import type { Field } from '@tollward/wire'

/** Schemes of Authorization that are told by name (IANA's registry, and what is widely used beside it); the others are `other`. */
const SCHEMES: Readonly<Record<string, string>> = {
  basic: 'basic',
  bearer: 'bearer',
  digest: 'digest',
  dpop: 'dpop',
  gnap: 'gnap',
  hoba: 'hoba',
  mutual: 'mutual',
  negotiate: 'negotiate',
  ntlm: 'ntlm',
  privatetoken: 'privatetoken',
  'scram-sha-1': 'scram',
  'scram-sha-256': 'scram',
  vapid: 'vapid',
  hawk: 'hawk',
  token: 'token',
  apikey: 'api-key',
  'api-key': 'api-key',
  'aws4-hmac-sha256': 'aws-signature',
}

/** Fields whose mere presence is a credential. */
const FIELDS: Readonly<Record<string, string>> = {
  cookie: 'cookie',
  'x-api-key': 'api-key',
  'api-key': 'api-key',
  apikey: 'api-key',
  'x-apikey': 'api-key',
  'x-goog-api-key': 'api-key',
  'ocp-apim-subscription-key': 'api-key',
  'x-functions-key': 'api-key',
  'x-auth-token': 'token',
  'x-access-token': 'token',
  'private-token': 'token',
  'x-vault-token': 'token',
  'x-amz-security-token': 'token',
  'x-forwarded-client-cert': 'client-certificate',
  'client-cert': 'client-certificate',
  'x-ssl-client-cert': 'client-certificate',
  'ssl-client-cert': 'client-certificate',
  'signature-input': 'message-signature',
  'x-hub-signature-256': 'message-signature',
}

/** Parameters of a query that are credentials: they end in logs, which is why they are told apart. */
const PARAMETERS: ReadonlySet<string> = new Set([
  ...['access_token', 'api_key', 'api-key', 'apikey', 'auth', 'auth_token', 'client_secret', 'id_token', 'jwt', 'key'],
  ...['password', 'refresh_token', 'secret', 'sig', 'signature', 'token', 'x-amz-signature'],
])
const QUERY_CREDENTIAL = 'in-query'

/** Fields whose values are credentials or made for them, and are not looked at for anything else. */
export function isCredentialField(name: string): boolean {
  return Object.hasOwn(FIELDS, name) || CREDENTIAL_FIELDS.has(name)
}

const CREDENTIAL_FIELDS: ReadonlySet<string> = new Set(['authorization', 'proxy-authorization', 'set-cookie', 'dpop'])

/** Kinds of credential in a question, never their values: sorted, each once. */
export function credentialKinds(fields: readonly Field[], query: string): string[] {
  const kinds = new Set<string>()
  for (const [name, value] of fields) {
    if (name === 'authorization' || name === 'proxy-authorization') kinds.add(schemeOf(value))
    const kind = Object.hasOwn(FIELDS, name) ? FIELDS[name] : undefined
    if (kind !== undefined) kinds.add(kind)
  }
  if (hasCredential(query)) kinds.add(QUERY_CREDENTIAL)
  return [...kinds].sort()
}

/** A scheme is followed by what it carries; what stands alone may be the secret itself. */
function schemeOf(value: string): string {
  const space = value.indexOf(' ')
  const scheme = value.slice(0, Math.max(0, space)).toLowerCase()
  return Object.hasOwn(SCHEMES, scheme) ? (SCHEMES[scheme] ?? 'other') : 'other'
}

function hasCredential(query: string): boolean {
  return query.split('&').some((parameter) => {
    const equals = parameter.indexOf('=')
    return equals > 0 && equals < parameter.length - 1 && PARAMETERS.has(parameter.slice(0, equals).toLowerCase())
  })
}
