/** One attribute of a name, such as CN=Orders; its value unescaped. */
type Attribute = readonly [type: string, value: string]

/** A distinguished name: relative names, the most specific one first, each of one or more attributes. */
type DistinguishedName = readonly (readonly Attribute[])[]

const HEX_PAIR = /^[0-9a-fA-F]{2}/

/**
 * Whether a certificate's subject, as Node shows it, is the expected one, written as RFC 4514 says (what
 * `openssl x509 -noout -subject -nameopt RFC2253` prints). Every attribute has to be there, in its place, and no other;
 * values are compared character by character.
 */
export function isSubject(subject: string | undefined, expected: string): boolean {
  const wanted = parseName(expected)
  if (!subject || !wanted || wanted.length === 0) return false
  // Node: one relative name a line, the most specific one last, its attributes joined by " + ". Both are escaped in values.
  const shown = parseName(subject.split('\n').toReversed().join(',').replaceAll(' + ', '+'))
  return shown !== undefined && canonical(shown) === canonical(wanted)
}

/** Reads RFC 4514 text. Undefined: it is none. */
export function parseName(text: string): DistinguishedName | undefined {
  const names: Attribute[][] = [[]]
  let rest = text
  while (rest !== '') {
    const start = /^\s*([A-Za-z][-A-Za-z0-9]*|\d+(?:\.\d+)+)\s*=/.exec(rest)
    const type = start?.[1]
    if (!start || type === undefined) return undefined
    const read = readValue(rest.slice(start[0].length))
    if (!read) return undefined
    names.at(-1)?.push([type.toUpperCase(), read.value])
    if (read.end === '') return names
    rest = read.rest
    if (rest === '') return undefined
    if (read.end === ',') names.push([])
  }
  return undefined
}

/** The value at the start of the text, up to an unescaped comma or plus sign. Undefined: it breaks off. */
function readValue(text: string): { value: string; end: '' | ',' | '+'; rest: string } | undefined {
  const bytes: number[] = []
  let trailing = 0
  let index = /^\s*/.exec(text)?.[0].length ?? 0
  for (; index < text.length; index++) {
    const char = String.fromCodePoint(text.codePointAt(index) ?? 0)
    if (char === ',' || char === '+') return { value: decoded(bytes, trailing), end: char, rest: text.slice(index + 1) }
    if (char === '\\') {
      const pair = HEX_PAIR.exec(text.slice(index + 1))
      const escaped = text[index + 1]
      if (escaped === undefined) return undefined
      bytes.push(...(pair ? [Number.parseInt(pair[0], 16)] : Buffer.from(escaped)))
      index += pair ? 2 : 1
      trailing = 0
      continue
    }
    bytes.push(...Buffer.from(char))
    index += char.length - 1
    trailing = char === ' ' ? trailing + 1 : 0
  }
  return { value: decoded(bytes, trailing), end: '', rest: '' }
}

/** Spaces at the end are no part of a value unless they are escaped. */
function decoded(bytes: readonly number[], trailing: number): string {
  return Buffer.from(bytes.slice(0, bytes.length - trailing)).toString()
}

/** Attributes of one relative name are a set: their order says nothing. */
function canonical(name: DistinguishedName): string {
  return JSON.stringify(name.map((attributes) => attributes.map((pair) => JSON.stringify(pair)).sort()))
}
