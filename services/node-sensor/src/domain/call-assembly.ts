import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { type DurationSchema, timestampFromMs } from '@bufbuild/protobuf/wkt'
import { Binding, type CapturedCall, CapturedCallSchema, type OwnerSchema, Side } from '@tollward/contracts/sensor'
import type { Chunk } from '@tollward/libbpf'
import {
  type ExchangeEnd,
  type ExchangeHandler,
  type Field,
  HttpObserver,
  type RequestHead,
  type ResponseHead,
} from '@tollward/wire'
import { credentialKinds, isCredentialField } from './credentials.ts'
import { decoded, findSensitive, type SensitiveKind, SensitiveScan, withoutSensitive } from './sensitive.ts'

/** Some 2 KiB each while they are idle. */
const CONNECTIONS_MAX = 16_384
/** A process that ends without closing its TLS says nothing of its connections any more. */
const SILENT_NS_MAX = 600_000_000_000n
/** Of what is told of one call; longer ones are cut. */
const PATH_LENGTH_MAX = 1024
const HOST_LENGTH_MAX = 255
const FIELD_NAMES_MAX = 64
const NANOSECONDS_PER_MILLISECOND = 1_000_000n
const NANOSECONDS_PER_SECOND = 1_000_000_000n

const GRPC = 'application/grpc'
/** Content in which nothing can be found. */
const OPAQUE_CONTENT = /^(?:image|audio|video|font)\/|^application\/(?:octet-stream|zip|gzip|pdf|wasm|zstd)\b/i
const HOST = /^[a-z0-9_.[\]:-]{1,255}$/
const ABSOLUTE = /^[a-z][a-z0-9+.-]{0,15}:\/\/([^/?#]*)/i
const UNPRINTABLE = /[^\x21-\x7e]/g

const BINDINGS = { certain: Binding.CERTAIN, token: Binding.TOKEN, none: Binding.NONE } as const
const SIDES = { server: Side.SERVER, client: Side.CLIENT } as const

/** Whose a call is, as it is published. */
export type CallOwner = MessageInitShape<typeof OwnerSchema>

export interface AssemblyOptions {
  readonly onCall: (call: CapturedCall) => void
  /** Something of a call, or a call, had to be left out. */
  readonly onLost: (reason: string) => void
  /** What is known of the process beside what the kernel told. */
  readonly ownerOf: (owner: Chunk['owner']) => CallOwner
  /** Milliseconds since 1970 when the clock of the kernel programs stood at 0. */
  readonly bootedAtMs: () => number
  readonly connectionsMax?: number
}

/** A call that goes on. */
interface Going {
  readonly head: Pick<CapturedCall, 'method' | 'host' | 'path' | 'credentials' | 'requestHeaders'>
  readonly sensitive: Set<SensitiveKind>
  readonly question: SensitiveScan | undefined
  answer: SensitiveScan | undefined
  protocol: string
  status: number
  grpcStatus: number | undefined
  responseHeaders: string[]
}

/** What the chunks of one connection say of it; the newest is the surest. */
interface Connection {
  readonly observer: HttpObserver<Going>
  chunk: Omit<Chunk, 'bytes'>
}

/**
 * Makes calls of what the kernel captured. Holds a bounded number of connections, of which the one that was silent for longest
 * goes first, and of each no more than heads that are not whole.
 */
export class CallAssembly {
  readonly #options: AssemblyOptions
  readonly #connectionsMax: number
  /** The one that was silent for longest first. */
  readonly #connections = new Map<bigint, Connection>()

  constructor(options: AssemblyOptions) {
    this.#options = options
    this.#connectionsMax = options.connectionsMax ?? CONNECTIONS_MAX
  }

  get connections(): number {
    return this.#connections.size
  }

  push(chunk: Chunk): void {
    const known = this.#connections.get(chunk.connection)
    this.#connections.delete(chunk.connection)
    if (chunk.closed) {
      known?.observer.close(chunk.atNs)
      return
    }
    const connection = known ?? this.#connect(chunk)
    const { bytes, ...rest } = chunk
    connection.chunk = rest
    this.#connections.set(chunk.connection, connection)
    connection.observer.push(chunk.direction, { bytes, skipped: chunk.skipped, total: chunk.total, atNs: chunk.atNs })
    if (this.#connections.size > this.#connectionsMax) this.#evict()
  }

  /** Connections that were silent for ten minutes are over, whatever was due on them. `nowNs` is of the clock of the chunks. */
  forgetSilent(nowNs: bigint): void {
    for (const [id, { observer, chunk }] of this.#connections) {
      if (nowNs - chunk.atNs < SILENT_NS_MAX) return
      this.#connections.delete(id)
      observer.close(chunk.atNs)
    }
  }

  /** Tells what is going on as far as it was seen: there will be no more. */
  close(): void {
    for (const { observer, chunk } of this.#connections.values()) observer.close(chunk.atNs)
    this.#connections.clear()
  }

  #evict(): void {
    const [oldest] = this.#connections
    if (!oldest) return
    const [id, { observer, chunk }] = oldest
    this.#connections.delete(id)
    if (observer.waiting > 0) this.#options.onLost('evicted')
    observer.close(chunk.atNs)
  }

  #connect({ bytes: _, ...chunk }: Chunk): Connection {
    const asks = chunk.side && (chunk.side === 'server' ? 'received' : 'sent')
    const handler: ExchangeHandler<Going> = {
      request: (head) => going(head),
      requestContent: ({ question }, bytes) => question?.scan(bytes),
      response: (call, head) => answered(call, head),
      responseContent: ({ answer }, bytes) => answer?.scan(bytes),
      trailers: (call, fields) => noteTrailers(call, fields),
      end: (call, end) => this.#options.onCall(this.#captured(call, end, connection)),
      lost: (reason) => this.#options.onLost(reason),
    }
    const connection: Connection = { observer: new HttpObserver(handler, asks), chunk }
    return connection
  }

  #captured(call: Going, end: ExchangeEnd, { observer, chunk }: Connection): CapturedCall {
    const { bootedAtMs, ownerOf } = this.#options
    const asks = observer.asks && (observer.asks === 'received' ? 'server' : 'client')
    const side = chunk.side ?? asks
    const { addresses } = chunk
    return create(CapturedCallSchema, {
      ...call.head,
      beganAt: timestampFromMs(bootedAtMs() + Number(end.beganNs / NANOSECONDS_PER_MILLISECOND)),
      took: durationFromNanos(end.endedNs - end.beganNs),
      side: side ? SIDES[side] : Side.UNSPECIFIED,
      owner: ownerOf(chunk.owner),
      ...(addresses && {
        localAddress: addresses.local,
        localPort: addresses.localPort,
        peerAddress: addresses.peer,
        peerPort: addresses.peerPort,
      }),
      binding: BINDINGS[chunk.binding],
      ...{ protocol: call.protocol, source: chunk.source, status: call.status },
      ...(call.grpcStatus !== undefined && { grpcStatus: call.grpcStatus }),
      requestBytes: BigInt(end.requestBytes),
      responseBytes: BigInt(end.responseBytes),
      responseHeaders: call.responseHeaders,
      sensitive: [...call.sensitive].sort(),
      partial: end.partial,
    } satisfies MessageInitShape<typeof CapturedCallSchema>)
  }
}

function going({ method, target, authority, protocol, fields }: RequestHead): Going {
  const sensitive = new Set<SensitiveKind>()
  const absolute = ABSOLUTE.exec(target)
  const local = absolute ? target.slice(absolute[0].length) : target
  const [beforeFragment = ''] = local.split('#', 1)
  const mark = beforeFragment.indexOf('?')
  const path = method === 'CONNECT' ? '' : mark < 0 ? beforeFragment : beforeFragment.slice(0, mark)
  const query = mark < 0 ? '' : beforeFragment.slice(mark + 1)
  findSensitive(decoded(query), sensitive)
  findInFields(fields, sensitive)
  const host = method === 'CONNECT' ? target : (authority ?? absolute?.[1] ?? fieldValue(fields, 'host') ?? '')
  return {
    head: {
      ...{ method, host: hostOf(host), path: pathOf(path, sensitive) },
      ...{ credentials: credentialKinds(fields, query), requestHeaders: namesOf(fields) },
    },
    sensitive,
    question: scanOf(fields, sensitive),
    answer: undefined,
    protocol: isGrpc(fields) ? 'grpc' : protocol,
    status: 0,
    grpcStatus: undefined,
    responseHeaders: [],
  }
}

function answered(call: Going, { status, fields }: ResponseHead): void {
  call.status = status
  call.responseHeaders = namesOf(fields)
  findInFields(fields, call.sensitive)
  call.answer = scanOf(fields, call.sensitive)
  noteTrailers(call, fields)
}

/** An answer of gRPC without content has them in its head. */
function noteTrailers(call: Going, fields: readonly Field[]): void {
  const status = fieldValue(fields, 'grpc-status')
  if (call.protocol === 'grpc' && status !== undefined && /^\d{1,3}$/.test(status)) call.grpcStatus = Number(status)
}

function findInFields(fields: readonly Field[], found: Set<SensitiveKind>): void {
  let values = ''
  for (const [name, value] of fields) if (!isCredentialField(name)) values += `${value}\n`
  findSensitive(values, found)
}

/** Undefined where content cannot be looked into. */
function scanOf(fields: readonly Field[], found: Set<SensitiveKind>): SensitiveScan | undefined {
  const encoding = fieldValue(fields, 'content-encoding')
  if (encoding !== undefined && encoding.toLowerCase() !== 'identity') return undefined
  if (OPAQUE_CONTENT.test(fieldValue(fields, 'content-type') ?? '')) return undefined
  return new SensitiveScan(found)
}

function isGrpc(fields: readonly Field[]): boolean {
  return fieldValue(fields, 'content-type')?.toLowerCase().startsWith(GRPC) ?? false
}

function fieldValue(fields: readonly Field[], wanted: string): string | undefined {
  return fields.find(([name]) => name === wanted)?.[1]
}

/** Each once, sorted. */
function namesOf(fields: readonly Field[]): string[] {
  const names = new Set<string>()
  for (const [name] of fields) if (name !== '' && !name.startsWith(':') && names.size < FIELD_NAMES_MAX) names.add(name)
  return [...names].sort()
}

/** Without a user's name before it; empty if it is no host. */
function hostOf(authority: string): string {
  const host = authority.slice(authority.lastIndexOf('@') + 1).toLowerCase()
  return host.length <= HOST_LENGTH_MAX && HOST.test(host) ? host : ''
}

function pathOf(path: string, found: Set<SensitiveKind>): string {
  const printable = path
    .slice(0, PATH_LENGTH_MAX)
    .replace(UNPRINTABLE, (octet) => `%${octet.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`)
  return withoutSensitive(printable, found)
}

/** An answer that was told of before its question took no time. */
function durationFromNanos(nanos: bigint): MessageInitShape<typeof DurationSchema> {
  if (nanos < 0n) return { seconds: 0n, nanos: 0 }
  return { seconds: nanos / NANOSECONDS_PER_SECOND, nanos: Number(nanos % NANOSECONDS_PER_SECOND) }
}
