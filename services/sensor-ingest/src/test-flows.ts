import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { parseAddress } from '@tollward/contracts'
import { Direction, type Flow, type FlowObserved, FlowObservedSchema, FlowSchema } from '@tollward/contracts/sensor'

const TCP = 6

export function address(text: string): Uint8Array {
  const parsed = parseAddress(text)
  if (parsed === undefined) throw new RangeError(`not an address: ${text}`)
  return parsed
}

export interface FlowOptions {
  from?: string
  to?: string
  sourcePort?: number
  port?: number
  atMs?: number
  syns?: number
  established?: boolean
  direction?: Direction
  protocol?: number
}

/** By default an arriving connection that the kernel completed. */
export function flow(options: FlowOptions = {}): Flow {
  const { from = '192.0.2.1', to = '127.0.0.1', sourcePort = 40_000, port = 8080, atMs = 0 } = options
  const { syns = 1, established = true, direction = Direction.INGRESS, protocol = TCP } = options
  return create(FlowSchema, {
    source: address(from),
    destination: address(to),
    sourcePort,
    destinationPort: port,
    protocol,
    direction,
    syns,
    established,
    packets: 3n,
    firstSeenAt: timestampFromMs(atMs),
    lastSeenAt: timestampFromMs(atMs),
  })
}

/** `count` completed connections of one source, evenly from `fromMs` on for `spanMs`. */
export function flood(from: string, count: number, fromMs: number, spanMs: number): Flow[] {
  return Array.from({ length: count }, (_, index) =>
    flow({ from, sourcePort: 1024 + index, atMs: fromMs + Math.floor((index * spanMs) / count) }),
  )
}

/** A SYN to each of the ports 1 to `ports`, none answered. */
export function scan(from: string, ports: number, atMs: number): Flow[] {
  return Array.from({ length: ports }, (_, index) => flow({ from, port: index + 1, atMs, established: false }))
}

export function batch(sequence: number, flows: Flow[], drainedAtMs: number, session = 'one'): FlowObserved {
  return create(FlowObservedSchema, {
    node: 'node-a',
    session,
    sequence: BigInt(sequence),
    drainedAt: timestampFromMs(drainedAtMs),
    flows,
  })
}
