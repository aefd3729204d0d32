import type { Field } from './hpack.ts'

const NAME = /^[!#$%&'*+\-.^_`|~0-9a-z]+$/
/** No visible or obsolete text, no space, no tab (RFC 9110, section 5.5). */
const NO_VALUE = /[^\t\x20-\x7e\x80-\xff]/
const REQUEST_PSEUDO = [':method', ':scheme', ':authority', ':path']
/** Of one connection, and so of no stream (RFC 9113, section 8.2.2). */
const CONNECTION_SPECIFIC = new Set(['connection', 'proxy-connection', 'keep-alive', 'transfer-encoding', 'upgrade'])

/** What a request says of itself, beside its other fields. */
export interface Http2Request {
  readonly method: string
  readonly path: string
  /** Of its body; undefined: it does not say. */
  readonly contentLength: number | undefined
  readonly fields: readonly Field[]
}

/** Undefined: the request is malformed (RFC 9113, sections 8.2 and 8.3.1). */
export function requestHead(fields: readonly Field[]): Http2Request | undefined {
  const pseudo: (string | undefined)[] = [undefined, undefined, undefined, undefined]
  let contentLength: number | undefined
  let isPseudo = true
  for (const [name, value] of fields) {
    if (NO_VALUE.test(value)) return undefined
    if (name.charCodeAt(0) === 0x3a) {
      const kind = REQUEST_PSEUDO.indexOf(name)
      if (!isPseudo || kind < 0 || pseudo[kind] !== undefined) return undefined
      pseudo[kind] = value
      continue
    }
    isPseudo = false
    if (!isField(name, value)) return undefined
    if (name === 'content-length') {
      if (contentLength !== undefined || !/^\d{1,15}$/.test(value)) return undefined
      contentLength = Number(value)
    }
  }
  const [method, scheme, , path] = pseudo
  return method && scheme && path ? { method, path, contentLength, fields } : undefined
}

/** Whether what follows a body may follow it: fields that are none of the head. */
export function areTrailers(fields: readonly Field[]): boolean {
  return fields.every(([name, value]) => isField(name, value) && !NO_VALUE.test(value))
}

function isField(name: string, value: string): boolean {
  return NAME.test(name) && !CONNECTION_SPECIFIC.has(name) && (name !== 'te' || value === 'trailers')
}
