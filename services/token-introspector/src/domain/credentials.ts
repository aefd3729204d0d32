import type { Form } from './form.ts'

export interface ClientCredentials {
  readonly clientId: string
  readonly clientSecret: string
}

/** Credentials as they came, by one method (RFC 6749, section 2.3.1): client_secret_basic or client_secret_post. */
export type Presented = { readonly authorization: string } | ClientCredentials

/** What a client authenticates itself with. Undefined: nothing. 'twice': a client may use one method only. */
export function presentedCredentials(
  authorization: string | undefined,
  { clientId, clientSecret }: Form,
): Presented | 'twice' | undefined {
  if (authorization !== undefined) return clientSecret === undefined ? { authorization } : 'twice'
  return clientId && clientSecret !== undefined ? { clientId, clientSecret } : undefined
}

/** Reads client_secret_basic: RFC 7617 with both parts form-encoded (RFC 6749, section 2.3.1). Undefined: it is none. */
export function parseBasic(authorization: string): ClientCredentials | undefined {
  const [, encoded] = /^basic +([A-Za-z0-9+/]+={0,2})$/i.exec(authorization) ?? []
  if (encoded === undefined) return undefined
  const text = Buffer.from(encoded, 'base64').toString()
  const colon = text.indexOf(':')
  if (colon < 1) return undefined
  try {
    return { clientId: formDecoded(text.slice(0, colon)), clientSecret: formDecoded(text.slice(colon + 1)) }
  } catch (error) {
    if (error instanceof URIError) return undefined
    throw error
  }
}

function formDecoded(text: string): string {
  return decodeURIComponent(text.replaceAll('+', ' '))
}
