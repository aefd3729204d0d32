/** What a caller sends in the body; undefined where it is not there. */
export interface Form {
  readonly token: string | undefined
  readonly clientId: string | undefined
  readonly clientSecret: string | undefined
}

/** A body with nothing but a token in which nothing is encoded: what nearly all callers send. */
const TOKEN_ONLY = /^token=([\w.~-]+)$/

/** Reads a body of application/x-www-form-urlencoded. A text: the parameter that is there more than once (RFC 6749, section 3.1). */
export function readForm(body: string): Form | string {
  const only = TOKEN_ONLY.exec(body)
  if (only) return { token: only[1], clientId: undefined, clientSecret: undefined }
  const parameters = new URLSearchParams(body)
  const twice = ['token', 'client_id', 'client_secret'].find((name) => parameters.getAll(name).length > 1)
  if (twice !== undefined) return twice
  return {
    token: parameters.get('token') ?? undefined,
    clientId: parameters.get('client_id') ?? undefined,
    clientSecret: parameters.get('client_secret') ?? undefined,
  }
}
