import { type DocumentNode, Kind, parse } from 'graphql/language/index.js'
import type { HeaderList } from './fields.ts'
import { singleValue } from './fields.ts'
import type { RequestBody } from './judge.ts'
import type { QueryView } from './query.ts'
import type { Fault } from './target.ts'

/** Reading a longer one would keep everybody else waiting for milliseconds. */
export const BODY_BYTES_MAX = 128 * 1024
/** What reading a GraphQL document may cost: some thousands of tokens are a millisecond or two. */
const GRAPHQL_TOKENS_MAX = 4000

/** A request, as far as its body is concerned. */
export interface BodyFacts {
  readonly method: string
  readonly headers: HeaderList
  readonly body?: RequestBody | undefined
}

type JsonObject = Readonly<Record<string, unknown>>

/** One call of a JSON-RPC 2.0 body. */
export interface RpcCall {
  readonly method: string
  /** Of tools/call, the tool. */
  readonly tool: string | undefined
}

/** What a body says, read at most once and only where a rule asks. */
export class BodyView {
  readonly #facts: BodyFacts
  readonly #query: QueryView
  #json: unknown
  #calls: readonly RpcCall[] | Fault | undefined
  #operation: { readonly name: string | undefined } | Fault | undefined

  constructor(facts: BodyFacts, query: QueryView) {
    this.#facts = facts
    this.#query = query
  }

  /**
   * The calls of JSON-RPC that a body makes; none where there is no body or it only answers. A fault where it cannot be told, so
   * that nobody gets past a rule by a body that only the API understands.
   */
  calls(): readonly RpcCall[] | Fault {
    this.#calls ??= this.#readCalls()
    return this.#calls
  }

  /** The operation of GraphQL that a request would execute, by its name; undefined where there is none, or it has no name. */
  operation(): { readonly name: string | undefined } | Fault {
    this.#operation ??= this.#readOperation()
    return this.#operation
  }

  #readCalls(): readonly RpcCall[] | Fault {
    const body = this.#read()
    if (body === undefined) return []
    if (isFault(body)) return body.fault
    const members = Array.isArray(body.json) ? body.json : [body.json]
    if (members.length === 0) return 'body-unreadable'
    const calls: RpcCall[] = []
    for (const member of members) {
      if (!isObject(member) || hasMisspelled(member, ['method', 'params'])) return 'body-unreadable'
      if (!Object.hasOwn(member, 'method')) {
        // An answer to the server, as MCP has them. Without either it is nothing at all.
        if (!Object.hasOwn(member, 'result') && !Object.hasOwn(member, 'error')) return 'body-unreadable'
        continue
      }
      const call = rpcCall(member)
      if (!call) return 'body-unreadable'
      calls.push(call)
    }
    return calls
  }

  #readOperation(): { readonly name: string | undefined } | Fault {
    const body = this.#read()
    const inUrl = this.#fromUrl()
    if (inUrl === 'graphql-unclear') return inUrl
    if (body === undefined) return inUrl ? operationOf(inUrl) : NO_OPERATION
    if (isFault(body)) return body.fault
    // Some servers read the one, some the other.
    if (inUrl) return 'graphql-unclear'
    if (!isObject(body.json) || hasMisspelled(body.json, ['query', 'operationName'])) return 'body-unreadable'
    return operationOf(body.json)
  }

  #fromUrl(): JsonObject | 'graphql-unclear' | undefined {
    const found: Record<string, string> = {}
    for (const name of ['query', 'operationName', ...STORED_OPERATION]) {
      const value = this.#query.value(name)
      if (value === false) return 'graphql-unclear'
      if (value !== undefined) found[name] = value
    }
    return Object.keys(found).length === 0 ? undefined : found
  }

  /** Undefined: there is no body. */
  #read(): { readonly json: unknown } | { readonly fault: Fault } | undefined {
    const { body, headers } = this.#facts
    if (!body) return mayHaveBody(this.#facts) ? { fault: 'body-missing' } : undefined
    if (!body.isWhole || body.bytes.length > BODY_BYTES_MAX) return { fault: 'body-missing' }
    if (body.bytes.length === 0) return undefined
    if (!isJson(singleValue(headers, 'content-type'))) return UNREADABLE
    if (singleValue(headers, 'content-encoding') !== undefined) return UNREADABLE
    this.#json ??= strictJson(body.bytes)
    return this.#json === undefined ? UNREADABLE : { json: this.#json }
  }
}

const UNREADABLE = { fault: 'body-unreadable' } as const
const NO_OPERATION = { name: undefined } as const

/** A stored operation's id, under the names that servers know it by: what it does cannot be told from the request. */
const STORED_OPERATION = ['extensions', 'id', 'documentId', 'doc_id', 'queryId']

function isFault<B extends object>(body: B | { readonly fault: Fault }): body is { readonly fault: Fault } {
  return 'fault' in body
}

/** Where the body itself was not sent along: whether there is one, as far as its headers say. */
function mayHaveBody({ method, headers }: BodyFacts): boolean {
  const length = singleValue(headers, 'content-length')
  if (length !== undefined) return length !== '0'
  if (singleValue(headers, 'transfer-encoding') !== undefined) return true
  return method !== 'GET' && method !== 'HEAD' && method !== 'DELETE' && method !== 'OPTIONS'
}

/** JSON in UTF-8; other types make of the same bytes something else. */
function isJson(contentType: string | undefined | false): boolean {
  if (!contentType) return false
  const [type = '', ...parameters] = contentType.toLowerCase().split(';')
  if (!/^application\/(?:[a-z0-9!#$&^_.-]+\+)?json\s*$/.test(type)) return false
  return parameters.every((parameter) => {
    const [name = '', value = ''] = parameter.split('=')
    return name.trim() !== 'charset' || /^\s*"?utf-?8"?\s*$/.test(value)
  })
}

/** Undefined: it is no JSON, or readers of JSON differ about what it says. */
function strictJson(bytes: Uint8Array): unknown {
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    const json: unknown = JSON.parse(text)
    return hasRepeatedNames(text) ? undefined : (json ?? undefined)
  } catch {
    return undefined
  }
}

/** Whether an object in this JSON text, which is well-formed, has two names that differ at most in case: readers take one or the other. */
function hasRepeatedNames(text: string): boolean {
  const open: (Set<string> | undefined)[] = []
  const tokens = /"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?|[{}[\]]/gs
  for (let token = tokens.exec(text); token; token = tokens.exec(text)) {
    const [found, colon] = token
    if (found === '{') open.push(new Set())
    else if (found === '[') open.push(undefined)
    else if (found === '}' || found === ']') open.pop()
    else if (colon !== undefined) {
      const name = folded(JSON.parse(found.slice(0, found.length - colon.length)))
      const names = open.at(-1)
      if (names?.has(name)) return true
      names?.add(name)
    }
  }
  return false
}

/** Some readers take names in any case, also of the letters that only fold to ASCII. */
function folded(name: string): string {
  return name.toUpperCase().toLowerCase()
}

/** Whether it has one of these names in another case only. */
function hasMisspelled(object: JsonObject, names: readonly string[]): boolean {
  return Object.keys(object).some((name) => names.some((wanted) => name !== wanted && folded(name) === folded(wanted)))
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** The method of MCP that calls a tool. */
const CALLS_TOOL = 'tools/call'

function rpcCall({ method, params }: JsonObject): RpcCall | undefined {
  if (typeof method !== 'string') return undefined
  if (method !== CALLS_TOOL) return { method, tool: undefined }
  if (!isObject(params) || hasMisspelled(params, ['name']) || typeof params.name !== 'string') return undefined
  return { method, tool: params.name }
}

function operationOf({ query, operationName, ...others }: JsonObject): { readonly name: string | undefined } | Fault {
  if (typeof query !== 'string') {
    const names = query === undefined ? [operationName, ...STORED_OPERATION.map((name) => others[name])] : [query]
    return names.every((value) => value === undefined) ? NO_OPERATION : 'graphql-unclear'
  }
  if (operationName !== undefined && operationName !== null && typeof operationName !== 'string')
    return 'graphql-unclear'
  const names = operationNames(query)
  if (!names || new Set(names).size < names.length) return 'graphql-unclear'
  if (!operationName) return names.length === 1 ? { name: names[0] } : 'graphql-unclear'
  return names.includes(operationName) ? { name: operationName } : 'graphql-unclear'
}

function operationNames(query: string): (string | undefined)[] | undefined {
  let document: DocumentNode
  try {
    document = parse(query, { noLocation: true, maxTokens: GRAPHQL_TOKENS_MAX })
  } catch {
    return undefined
  }
  return document.definitions.flatMap((node) => (node.kind === Kind.OPERATION_DEFINITION ? [node.name?.value] : []))
}
