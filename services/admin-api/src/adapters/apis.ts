import { setTimeout as delay } from 'node:timers/promises'
import type { Bus } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import type { ApiEndpoint } from '@tollward/contracts/admin'
import { CallCapturedSchema } from '@tollward/contracts/sensor'
import { AppError } from '@tollward/errors'
import { ApiCatalogue } from '../domain/api-catalogue.ts'
import type { AdminMethods, AdminStreams } from './calls.ts'

/** Watchers are told of each endpoint this often at most. */
const TELL_MS = 1000
/** Each holds the names of what has changed. */
const WATCHERS_MAX = 16
/** An answer of some megabytes at most; the catalogue holds more only of many hosts. */
const LISTED_MAX = 5000

/** What sensors saw of APIs, from what the stream still has on. */
export class Apis implements AsyncDisposable {
  readonly #catalogue = new ApiCatalogue()
  /** What has changed since each watcher was told. */
  readonly #watchers = new Set<Set<string>>()
  readonly #following: Promise<AsyncDisposable>

  constructor(bus: Bus) {
    const onChange = (key: string) => {
      for (const changed of this.#watchers) changed.add(key)
    }
    this.#following = bus.follow(contract(CallCapturedSchema), 'beginning', (batch) =>
      this.#catalogue.add(batch, onChange),
    )
  }

  list(host: string) {
    return { ...this.#catalogue.totals, endpoints: this.#catalogue.list(host).slice(0, LISTED_MAX) }
  }

  /** Endpoints that were called since the time before, until the signal is aborted. */
  async *changes(host: string, signal: AbortSignal): AsyncGenerator<ApiEndpoint[]> {
    if (this.#watchers.size >= WATCHERS_MAX)
      throw new AppError('resource_exhausted', `Endpoints are watched ${WATCHERS_MAX} times already; end one of them.`)
    const changed = new Set<string>()
    this.#watchers.add(changed)
    try {
      while (!signal.aborted) {
        await delay(TELL_MS, undefined, { signal }).catch(() => undefined)
        const endpoints = [...changed].flatMap((key) => this.#catalogue.get(key) ?? [])
        changed.clear()
        const wanted = endpoints.filter((endpoint) => host === '' || endpoint.host === host)
        if (wanted.length > 0 && !signal.aborted) yield wanted
      }
    } finally {
      this.#watchers.delete(changed)
    }
  }

  /** Reading the past may never end without a server; there is nothing to close then. */
  async [Symbol.asyncDispose](): Promise<void> {
    const following = await Promise.race([this.#following, undefined])
    await following?.[Symbol.asyncDispose]()
  }
}

export function apiMethods(apis: Apis): Pick<AdminMethods, 'listApis'> {
  return { listApis: async ({ host }) => apis.list(host.toLowerCase()) }
}

/** Streams what changes; a caller that reads slowly is told of the newest state when it has room. */
export function apiWatcher(apis: Apis): AdminStreams['watchApis'] {
  return async ({ host }, writer, signal) => {
    for await (const endpoints of apis.changes(host.toLowerCase(), signal)) await writer.write({ endpoints })
  }
}
