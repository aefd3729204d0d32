/**
 * The DER of the client's certificate in a header that a proxy set: a byte sequence (RFC 9440, 2.1) or URL-encoded PEM, as nginx's
 * `$ssl_client_escaped_cert` is. Undefined where there is none, or anything else.
 */
export function certificateFrom(value: string): Uint8Array | undefined {
  const [, sequence] = /^:([A-Za-z0-9+/]+={0,2}):$/.exec(value) ?? []
  if (sequence !== undefined) return Buffer.from(sequence, 'base64')
  const [, body] =
    /^-----BEGIN%20CERTIFICATE-----((?:[A-Za-z0-9]|%0A|%2B|%2F|%3D)+)-----END%20CERTIFICATE-----(?:%0A)?$/.exec(
      value,
    ) ?? []
  return body === undefined ? undefined : Buffer.from(decodeURIComponent(body), 'base64')
}
