import { create } from '@bufbuild/protobuf'
import type { BucketChange, Bus, Outcome } from '@tollward/bus'
import { bucketContract, contract, parseCallerKey, parseRangeKey, writeCaller } from '@tollward/contracts'
import { AlertRaisedSchema } from '@tollward/contracts/detection'
import {
  type Block,
  BlockDecidedSchema,
  BlockLiftedSchema,
  BlockSchema,
  LiftCause,
} from '@tollward/contracts/enforcement'
import type { Metrics } from '../metrics.ts'

const DURABLE = 'block-audit'

const alertRaised = contract(AlertRaisedSchema)
const blockDecided = contract(BlockDecidedSchema)
const blockLifted = contract(BlockLiftedSchema)

/**
 * Publishes each change of the bucket `blocks`, lapses too, and the alert that a block carries. Ids derive from the alert and
 * from the revision, so that replicas and restarts publish each once; a change stays in the queue until it is published.
 */
export function auditBlocks(bus: Bus, metrics: Metrics): Promise<AsyncDisposable> {
  const onBlockChanged = async (change: BucketChange<Block>): Promise<Outcome> => {
    const blocked = blockedBy(change.key)
    if (blocked === undefined) return 'discard'
    const { revision, value: block, ended } = change
    const id = `blocks:${change.key}:${revision}`
    if (block?.alert) {
      await bus.publish(alertRaised, create(AlertRaisedSchema, { alert: block.alert }), { id: block.alert.alertId })
    }
    if (block) {
      await bus.publish(blockDecided, create(BlockDecidedSchema, { block, revision: BigInt(revision) }), { id })
    } else {
      const cause = ended === 'expired' ? LiftCause.EXPIRED : LiftCause.REMOVED
      await bus.publish(blockLifted, create(BlockLiftedSchema, { ...blocked, revision: BigInt(revision), cause }), {
        id,
      })
    }
    metrics.audited.inc({ change: ended ?? 'decided' })
    return 'done'
  }
  return bus.consumeBucket(DURABLE, bucketContract(BlockSchema), onBlockChanged, { waitsForOutages: true })
}

/** The range of addresses or the caller that a key of the bucket names. */
function blockedBy(key: string) {
  const caller = parseCallerKey(key)
  return caller ? { caller: writeCaller(caller) } : parseRangeKey(key)
}
