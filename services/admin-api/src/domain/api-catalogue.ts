import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { type Timestamp, timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt'
import { type ApiEndpoint, ApiEndpointSchema } from '@tollward/contracts/admin'
import type { CallCaptured, CapturedCall } from '@tollward/contracts/sensor'
import { templateOf } from './path-template.ts'

/** About a kilobyte each. Scanners ask for what is not there, which makes no endpoint. */
const ENDPOINTS_MAX = 10_000
/** Of each endpoint: names beyond are left out. */
const NAMES_MAX = 16
const NOT_FOUND = 404
const METHOD_NOT_ALLOWED = 405

interface Endpoint {
  readonly key: string
  readonly place: Pick<ApiEndpoint, 'host' | 'method' | 'path' | 'side'>
  readonly protocols: Set<string>
  readonly credentials: Set<string>
  readonly sensitive: Set<string>
  readonly processes: Set<string>
  readonly nodes: Set<string>
  /** By the first digit of the status, 0 for none. */
  readonly byClass: number[]
  anonymous: number
  answered: number
  answeredMicros: number
  firstSeenMs: number
  lastSeenMs: number
}

/** The endpoints that calls were seen of, the one that was silent for longest first to go when there are too many. */
export class ApiCatalogue {
  readonly #endpoints = new Map<string, Endpoint>()
  readonly #endpointsMax: number
  #unplaced = 0
  #forgotten = 0
  #lost = 0n

  constructor(endpointsMax = ENDPOINTS_MAX) {
    this.#endpointsMax = endpointsMax
  }

  get totals() {
    return { unplaced: BigInt(this.#unplaced), forgotten: BigInt(this.#forgotten), lost: this.#lost }
  }

  /** Adds what a sensor saw; `onChange` is told the key of each endpoint that has changed. */
  add({ node, calls, lost }: CallCaptured, onChange: (key: string) => void = () => undefined): void {
    this.#lost += lost
    for (const call of calls) {
      const endpoint = this.#endpointOf(call)
      if (!endpoint) {
        this.#unplaced += 1
        continue
      }
      note(endpoint, call, node)
      onChange(endpoint.key)
    }
  }

  /** Of one host, or of all if it is empty: by host, path and method. */
  list(host: string): ApiEndpoint[] {
    return [...this.#endpoints.values()]
      .filter(({ place }) => host === '' || place.host === host)
      .sort((one, other) => compare(one.key, other.key))
      .map(told)
  }

  get(key: string): ApiEndpoint | undefined {
    const endpoint = this.#endpoints.get(key)
    return endpoint && told(endpoint)
  }

  #endpointOf(call: CapturedCall): Endpoint | undefined {
    const { host, method, side, status } = call
    if (method === '' || (call.path === '' && method !== 'CONNECT')) return undefined
    const path = templateOf(call.path)
    const key = JSON.stringify([host, path, method, side])
    const known = this.#endpoints.get(key)
    if (!known && (status === NOT_FOUND || status === METHOD_NOT_ALLOWED)) return undefined
    const seenMs = msOf(call.beganAt)
    const endpoint = known ?? {
      ...{ key, place: { host, method, path, side } },
      ...{ protocols: new Set(), credentials: new Set(), sensitive: new Set(), processes: new Set(), nodes: new Set() },
      ...{ byClass: [0, 0, 0, 0, 0, 0], anonymous: 0, answered: 0, answeredMicros: 0 },
      ...{ firstSeenMs: seenMs, lastSeenMs: seenMs },
    }
    this.#endpoints.delete(key)
    this.#endpoints.set(key, endpoint)
    if (this.#endpoints.size > this.#endpointsMax) this.#forget()
    return endpoint
  }

  #forget(): void {
    const [oldest] = this.#endpoints.keys()
    if (oldest === undefined) return
    this.#endpoints.delete(oldest)
    this.#forgotten += 1
  }
}

function note(endpoint: Endpoint, call: CapturedCall, node: string): void {
  const statusClass = Math.min(5, Math.floor(call.status / 100))
  endpoint.byClass[statusClass] = (endpoint.byClass[statusClass] ?? 0) + 1
  if (call.credentials.length === 0) endpoint.anonymous += 1
  if (call.status > 0 && call.took) {
    endpoint.answered += 1
    endpoint.answeredMicros += Number(call.took.seconds) * 1e6 + call.took.nanos / 1000
  }
  addAll(endpoint.protocols, [call.protocol])
  addAll(endpoint.credentials, call.credentials)
  addAll(endpoint.sensitive, call.sensitive)
  addAll(endpoint.processes, [call.owner?.processName ?? ''])
  addAll(endpoint.nodes, [node])
  const seenMs = msOf(call.beganAt)
  endpoint.firstSeenMs = Math.min(endpoint.firstSeenMs, seenMs)
  endpoint.lastSeenMs = Math.max(endpoint.lastSeenMs, seenMs)
}

function told(endpoint: Endpoint): ApiEndpoint {
  const [unanswered = 0, informational = 0, successful = 0, redirected = 0, clientErrors = 0, serverErrors = 0] =
    endpoint.byClass
  return create(ApiEndpointSchema, {
    ...endpoint.place,
    calls: BigInt(endpoint.byClass.reduce((sum, calls) => sum + calls, 0)),
    ...{ unanswered: BigInt(unanswered), informational: BigInt(informational), successful: BigInt(successful) },
    ...{ redirected: BigInt(redirected), clientErrors: BigInt(clientErrors), serverErrors: BigInt(serverErrors) },
    anonymous: BigInt(endpoint.anonymous),
    ...{ protocols: sorted(endpoint.protocols), credentials: sorted(endpoint.credentials) },
    ...{ sensitive: sorted(endpoint.sensitive), processes: sorted(endpoint.processes), nodes: sorted(endpoint.nodes) },
    firstSeenAt: timestampFromMs(endpoint.firstSeenMs),
    lastSeenAt: timestampFromMs(endpoint.lastSeenMs),
    meanMicros: endpoint.answered === 0 ? 0 : Math.round(endpoint.answeredMicros / endpoint.answered),
  } satisfies MessageInitShape<typeof ApiEndpointSchema>)
}

function addAll(names: Set<string>, more: readonly string[]): void {
  for (const name of more) if (name !== '' && (names.size < NAMES_MAX || names.has(name))) names.add(name)
}

function sorted(names: ReadonlySet<string>): string[] {
  return [...names].sort()
}

function compare(one: string, other: string): number {
  return one < other ? -1 : one > other ? 1 : 0
}

function msOf(timestamp: Timestamp | undefined): number {
  return timestamp ? Math.trunc(timestampMs(timestamp)) : 0
}
