/** A query's parameters as rules compare them: percent-decoded once, "+" as a space (WHATWG URL, urlencoded). */
export class QueryView {
  readonly #query: string
  #values: ReadonlyMap<string, string | false> | undefined
  #isMalformed = false

  /** `query`: with its "?", or empty. */
  constructor(query: string) {
    this.#query = query
  }

  /** The one value of a parameter; undefined: it is absent; false: it can be read in more than one way. */
  value(name: string): string | undefined | false {
    this.#values ??= this.#read()
    return this.#isMalformed ? false : this.#values.get(name)
  }

  #read(): ReadonlyMap<string, string | false> {
    const values = this.#split(/&/)
    // Some servers take ";" for "&": where that makes a difference to a parameter, it has no value.
    if (!this.#query.includes(';')) return values
    const others = this.#split(/[&;]/)
    for (const name of new Set([...values.keys(), ...others.keys()])) {
      if (values.get(name) !== others.get(name)) values.set(name, false)
    }
    return values
  }

  #split(separator: RegExp): Map<string, string | false> {
    const values = new Map<string, string | false>()
    for (const pair of this.#query.slice(1).split(separator)) {
      if (pair === '') continue
      const equals = pair.indexOf('=')
      const name = decoded(equals < 0 ? pair : pair.slice(0, equals))
      if (name === undefined) this.#isMalformed = true
      else values.set(name, values.has(name) ? false : (decoded(equals < 0 ? '' : pair.slice(equals + 1)) ?? false))
    }
    return values
  }
}

/** How rules change a query. */
export interface QueryChange {
  readonly set: readonly (readonly [name: string, value: string])[]
  readonly remove: readonly string[]
}

/**
 * A query with parameters set and removed; what is set comes last. The others stay as they came, byte by byte. What one of two
 * readers of ";" takes for a removed parameter goes too.
 */
export function changedQuery(query: string, { set, remove }: QueryChange): string {
  const gone = new Set([...remove, ...set.map(([name]) => name)])
  const stays = (pair: string) => {
    const equals = pair.indexOf('=')
    const name = decoded(equals < 0 ? pair : pair.slice(0, equals))
    return name === undefined || !gone.has(name)
  }
  const kept = query
    .slice(1)
    .split('&')
    .filter((pair) => pair !== '' && stays(pair))
    .map((pair) => (pair.includes(';') ? pair.split(';').filter(stays).join(';') : pair))
    .filter((pair) => pair !== '')
  const added = set.map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`)
  const pairs = [...kept, ...added]
  return pairs.length === 0 ? '' : `?${pairs.join('&')}`
}

/** Undefined: it is not the percent-encoding of UTF-8. */
function decoded(text: string): string | undefined {
  try {
    return decodeURIComponent(text.includes('+') ? text.replaceAll('+', ' ') : text)
  } catch {
    return undefined
  }
}
