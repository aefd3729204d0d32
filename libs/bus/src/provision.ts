import {
  AckPolicy,
  DiscardPolicy,
  JetStreamApiError,
  type JetStreamManager,
  jetstream,
  RetentionPolicy,
  StorageType,
  type StreamConfig,
} from '@nats-io/jetstream'
import { Kvm } from '@nats-io/kv'
import { type NatsConnection, nanos } from '@nats-io/transport-node'
import { BUCKETS, DURABLES, STREAMS, type StreamTopology } from './topology.ts'

/** An event published again within this time under the same id is stored once. */
const DUPLICATE_WINDOW_MS = 10 * 60_000

/** How long the server keeps the mark of a key that ended by itself: watchers that are away for longer start from a snapshot. */
const DELETE_MARKER_TTL_MS = 60 * 60_000

/** How long a consumer may be silent about a message before another replica gets it. */
export const ACK_WAIT_MS = 10_000

/** Unacknowledged messages of one durable over all replicas. */
const MAX_ACK_PENDING = 4096

/**
 * Makes every stream, bucket and durable consumer of the topology, or brings those that are there up to it; what they hold
 * stays. Needs a credential that may use the whole JetStream API of the account; no service has one.
 */
export async function provision(connection: NatsConnection): Promise<void> {
  const js = jetstream(connection)
  const manager = await js.jetstreamManager()
  const kvm = new Kvm(js)
  for (const [name, stream] of Object.entries(STREAMS)) await ensureStream(manager, streamConfig(name, stream))
  for (const [name, { maxBytes }] of Object.entries(BUCKETS)) {
    await kvm.create(name, {
      history: 1,
      max_bytes: maxBytes,
      markerTTL: DELETE_MARKER_TTL_MS,
      storage: StorageType.File,
      // Reads go to the leader: a replica that lags could still show a code that was used.
      allow_direct: false,
    })
  }
  for (const [name, { stream, filter }] of Object.entries(DURABLES)) {
    await manager.consumers.add(stream, {
      durable_name: name,
      filter_subject: filter,
      ack_policy: AckPolicy.Explicit,
      ack_wait: nanos(ACK_WAIT_MS),
      // The bus library counts deliveries and writes the dead letter before it acknowledges, so the server never gives up.
      max_deliver: -1,
      max_ack_pending: MAX_ACK_PENDING,
    })
  }
}

/** Whether the last things that `provision` makes are there: the durables, and with them the streams that they read. */
export async function isProvisioned(connection: NatsConnection): Promise<boolean> {
  const manager = await jetstream(connection).jetstreamManager()
  for (const [name, { stream }] of Object.entries(DURABLES)) {
    try {
      await manager.consumers.info(stream, name)
    } catch (error) {
      if (error instanceof JetStreamApiError) return false
      throw error
    }
  }
  return true
}

function streamConfig(name: string, stream: StreamTopology) {
  return {
    name,
    subjects: [...stream.subjects],
    storage: stream.storage === 'memory' ? StorageType.Memory : StorageType.File,
    retention: stream.workQueue ? RetentionPolicy.Workqueue : RetentionPolicy.Limits,
    discard: stream.whenFull === 'refuse' ? DiscardPolicy.New : DiscardPolicy.Old,
    max_age: nanos(stream.maxAgeMs),
    max_bytes: stream.maxBytes,
    duplicate_window: nanos(
      stream.maxAgeMs === 0 ? DUPLICATE_WINDOW_MS : Math.min(DUPLICATE_WINDOW_MS, stream.maxAgeMs),
    ),
  } satisfies Partial<StreamConfig>
}

async function ensureStream(
  manager: JetStreamManager,
  config: Partial<StreamConfig> & { name: string },
): Promise<void> {
  const names = await manager.streams.names().next()
  if (names.includes(config.name)) await manager.streams.update(config.name, config)
  else await manager.streams.add(config)
}
