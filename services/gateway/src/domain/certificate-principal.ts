/** The parts of an X509Certificate that name its holder. */
export interface CertificateNames {
  /** As Node writes it: "URI:spiffe://a/b, DNS:c", values with special characters as JSON strings. */
  readonly subjectAltName?: string | undefined
  /** As Node writes it: one relative name a line, escaped as in RFC 2253. */
  readonly subject: string
}

/**
 * Whom a certificate names: the first URI among its alternative names, else the first DNS name, else its subject as in RFC 2253, as
 * Envoy does. Undefined: nobody.
 */
export function certificatePrincipal({ subjectAltName = '', subject }: CertificateNames): string | undefined {
  const names = alternativeNames(subjectAltName)
  const named = names.find(({ type }) => type === 'URI') ?? names.find(({ type }) => type === 'DNS')
  const principal = named?.value ?? subject.split('\n').toReversed().join(',')
  return principal === '' ? undefined : principal
}

function alternativeNames(text: string): { type: string; value: string }[] {
  const parts = text.matchAll(/(?:^|, )([A-Za-z ]+):("(?:[^"\\]|\\.)*"|[^,]*)/g)
  return [...parts].map(([, type = '', value = '']) => ({ type, value: unquoted(value) }))
}

function unquoted(value: string): string {
  return value.startsWith('"') ? String(JSON.parse(value)) : value
}
