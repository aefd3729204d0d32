import { create } from '@bufbuild/protobuf'
import type { Bus, Outcome } from '@tollward/bus'
import { bucketContract, contract } from '@tollward/contracts'
import { AlertRaisedSchema } from '@tollward/contracts/detection'
import { BlockSchema } from '@tollward/contracts/enforcement'
import { type FlowObserved, FlowObservedSchema } from '@tollward/contracts/sensor'
import { AppError } from '@tollward/errors'
import type { Action, Detection, Observation } from '../domain/detection.ts'
import type { Metrics } from '../metrics.ts'

const DURABLE = 'sensor-ingest-flows'

const alertRaised = contract(AlertRaisedSchema)

/** Blocks and alerts that wait for the bus. More than this means an outage of minutes under attack. About 1 KiB each. */
const PENDING_MAX = 10_000

/** What was decided and is not yet stored, by alert id, with the batch that decided it. */
export type Pending = Map<string, { readonly action: Action; readonly batch: string }>

/**
 * Decides on each batch as it comes, and stores blocks and alerts before the batch is acknowledged. What could not be stored
 * is tried again with every batch that follows.
 */
export function consumeFlows(
  bus: Bus,
  { detection, pending, metrics }: { detection: Detection; pending: Pending; metrics: Metrics },
): Promise<AsyncDisposable> {
  const perform = performer(bus, metrics)
  const onFlowObserved = async (batch: FlowObserved): Promise<Outcome> => {
    const name = `${batch.node}/${batch.session}/${batch.sequence}`
    const observation = detection.observe(batch, Date.now())
    count(metrics, batch, observation)
    for (const action of observation.actions) remember(pending, metrics, action, name)
    const failure = await performPending(pending, perform)
    if (failure !== undefined && pending.values().some((one) => one.batch === name)) throw failure
    return 'done'
  }
  return bus.consume(DURABLE, contract(FlowObservedSchema), onFlowObserved)
}

function remember(pending: Pending, metrics: Metrics, action: Action, batch: string): void {
  if (pending.size >= PENDING_MAX) {
    metrics.actionsDropped.inc()
    return
  }
  const alert = action.kind === 'alert' ? action.alert : action.block.alert
  pending.set(alert?.alertId ?? '', { action, batch })
}

/** Blocks first: a stream that takes no more alerts must not keep an attacker in. Returns the failure that stopped it. */
async function performPending(pending: Pending, perform: (action: Action) => Promise<void>): Promise<unknown> {
  let failure: unknown
  for (const kind of ['block', 'alert']) {
    try {
      for (const [id, { action }] of pending) {
        if (action.kind !== kind) continue
        await perform(action)
        pending.delete(id)
      }
    } catch (error) {
      failure = error
    }
  }
  return failure
}

function performer(bus: Bus, metrics: Metrics): (action: Action) => Promise<void> {
  const blocks = bus.bucket(bucketContract(BlockSchema))
  return async (action) => {
    if (action.kind === 'alert') {
      const message = create(AlertRaisedSchema, { alert: action.alert })
      await bus.publish(alertRaised, message, { id: action.alert.alertId })
      return
    }
    const { key, block, expiresAtMs, seenAtMs } = action
    try {
      await blocks.create(key, block, { expiresAtMs })
      metrics.blockDelay.observe(Math.max(0, Date.now() - seenAtMs) / 1000)
    } catch (error) {
      // Somebody else blocked it meanwhile: that block stands, and it is theirs to explain.
      if (!(error instanceof AppError && error.code === 'already_exists')) throw error
    }
  }
}

function count(metrics: Metrics, batch: FlowObserved, observation: Observation): void {
  const { arrival, connections, malformed, detections } = observation
  metrics.batches.inc({ arrival: arrival.kind })
  if (arrival.kind === 'repeated') return
  if (arrival.kind === 'fresh') metrics.batchesMissing.inc(arrival.missing)
  metrics.flows.inc(batch.flows.length)
  metrics.flowsLost.inc(Number(batch.lost))
  metrics.flowsMalformed.inc(malformed)
  metrics.connections.inc(connections)
  for (const found of detections) metrics.detections.inc(found)
}
