import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { type AddressRange, rangeContains, rangeKey } from '@tollward/contracts'
import { type Alert, Disposition } from '@tollward/contracts/detection'
import { type Block, BlockSchema } from '@tollward/contracts/enforcement'
import { CONNECTION_FLOOD, floodAlert } from './alert.ts'
import { type BlockLedger, decidedBy } from './block-ledger.ts'
import type { Flood } from './connection-flood.ts'
import type { Attempt } from './connections.ts'
import type { FloodSettings } from './settings.ts'
import { alertWindowStartMs } from './suppression.ts'

const BLOCK_FORMAT = 1

/** Whom no machine touches: the node's own addresses, and what the operator allows. */
export interface Exempt {
  readonly guarded: readonly AddressRange[]
  readonly allow: readonly AddressRange[]
}

/** Why a source is left alone, if it is. */
export function exemption(address: Uint8Array, { guarded, allow }: Exempt): 'guarded' | 'allowed' | undefined {
  if (guarded.some((range) => rangeContains(range, address))) return 'guarded'
  if (allow.some((range) => rangeContains(range, address))) return 'allowed'
  return undefined
}

/** block: write this, with the alert inside. alert: only tell. */
export type FloodDecision =
  | { readonly kind: 'block'; readonly key: string; readonly block: Block; readonly expiresAtMs: number }
  | { readonly kind: 'observed' | 'share_exceeded'; readonly alert: Alert }
  | { readonly kind: 'already_blocked' }

export interface FloodContext {
  readonly ledger: BlockLedger
  readonly settings: FloodSettings
  /** Machines may have this many blocks in force at once. */
  readonly machineBlocksMax: number
  readonly node: string
  readonly nowMs: number
}

/** What to do about a flood whose source is not exempt. */
export function decideFlood(flood: Flood, samples: readonly Attempt[], context: FloodContext): FloodDecision {
  const { ledger, settings, machineBlocksMax, node, nowMs } = context
  if (ledger.covers(flood.source, nowMs)) return { kind: 'already_blocked' }
  const tellOnly = { windowStartMs: alertWindowStartMs(flood.untilMs), node, nowMs }
  if (settings.mode === 'observe') {
    const outcome = { disposition: Disposition.WOULD_BLOCK, note: 'Not blocked: the settings say observe.' }
    return { kind: 'observed', alert: floodAlert(flood, samples, settings, tellOnly, outcome) }
  }
  if (ledger.machineBlocks(nowMs) >= machineBlocksMax) {
    const note = `Not blocked: ${machineBlocksMax} blocks of machines are in force, and more need an operator.`
    const outcome = { disposition: Disposition.DETECTED, note }
    return { kind: 'share_exceeded', alert: floodAlert(flood, samples, settings, tellOnly, outcome) }
  }
  return block(flood, samples, context)
}

function block(flood: Flood, samples: readonly Attempt[], context: FloodContext): FloodDecision {
  const { ledger, settings, node, nowMs } = context
  const expiresAtMs = nowMs + ledger.durationMs(flood.source, settings.blockForMs, nowMs)
  // The bucket keeps one source from being blocked twice, so the window is this flood's own: the next one is another alert.
  const occasion = { windowStartMs: flood.sinceMs, node, nowMs }
  const outcome = { disposition: Disposition.BLOCKED, blockedUntilMs: expiresAtMs }
  const alert = floodAlert(flood, samples, settings, occasion, outcome)
  const range = { address: flood.source, prefixLength: 128 }
  return {
    kind: 'block',
    key: rangeKey(range),
    expiresAtMs,
    block: create(BlockSchema, {
      format: BLOCK_FORMAT,
      ...range,
      reason: alert.reason,
      decidedBy: decidedBy(CONNECTION_FLOOD),
      decidedAt: timestampFromMs(nowMs),
      expiresAt: timestampFromMs(expiresAtMs),
      alert,
    }),
  }
}
