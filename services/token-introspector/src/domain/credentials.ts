export interface ClientCredentials {
  readonly clientId: string
  readonly clientSecret: string
}

/**
 * Reads a client's credentials (RFC 6749, section 2.3.1): client_secret_basic from the header, or client_secret_post from the
 * body. Undefined: there are none that can be read. 'twice': a client may use one method only.
 */
export function readCredentials(
  authorization: string | undefined,
  form: URLSearchParams,
): ClientCredentials | 'twice' | undefined {
  const clientId = form.get('client_id')
  const clientSecret = form.get('client_secret')
  if (authorization !== undefined) {
    const basic = parseBasic(authorization)
    // A client_id alone is no credential, but it must not name another client.
    return clientSecret !== null || (clientId !== null && clientId !== basic?.clientId) ? 'twice' : basic
  }
  return clientId && clientSecret !== null ? { clientId, clientSecret } : undefined
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
