import { setTimeout as delay } from 'node:timers/promises'
import { create, toBinary } from '@bufbuild/protobuf'
import { contract } from '@tollward/contracts'
import { AlertRaisedSchema } from '@tollward/contracts/detection'
import {
  bootNsToWallTimeMs,
  type CounterName,
  decodeGuardEvent,
  type GuardEvent,
  type GuardMode,
  RingReader,
} from '@tollward/libbpf'
import { type Reading, RuleAlerts } from '../domain/rule-alerts.ts'
import type { Metrics } from '../metrics.ts'
import type { Outbox } from './batch-publisher.ts'
import type { Kernel } from './kernel.ts'
import type { KernelRules } from './kernel-rules.ts'

/** An alert about packets that were dropped may wait for a second; the drop does not. */
const LOOK_INTERVAL_MS = 1000
/** Alerts are shed last. */
const RANK = 3

/** What the kernel drops without a rule or block of anybody's. */
const POLICIES: readonly { readonly counter: CounterName; readonly name: string }[] = [
  { counter: 'droppedSyn', name: 'The budget of SYNs' },
  { counter: 'droppedAnomaly', name: 'The policy on malformed packets' },
]

/** Told of each packet that the kernel shows as a sample, with the name of the rule that it met, if it met one. */
export type OnGuardEvent = (event: GuardEvent, rule: string | undefined) => void

interface AlertOptions {
  readonly kernel: Kernel
  readonly rules: KernelRules
  readonly mode: GuardMode
  readonly node: string
  readonly outbox: Outbox
  readonly metrics: Metrics
  readonly signal: AbortSignal
  readonly onGuardEvent?: OnGuardEvent
}

/**
 * Raises alerts when a rule that alerts matches, and when rules or the kernel's own policies begin to drop, until the signal is
 * aborted. To be called before the outbox runs.
 */
export async function alertOfRules(options: AlertOptions): Promise<void> {
  const { kernel, rules, mode, node, outbox, metrics, signal, onGuardEvent } = options
  const publisher = outbox.publisher({
    ...{ name: 'alerts', subject: contract(AlertRaisedSchema).subject, rank: RANK },
    metrics: { items: metrics.alerts, lost: metrics.alertsLost, buffered: metrics.alertsBuffered },
  })
  const alerts = new RuleAlerts(node)
  alerts.begin(policyReadings(kernel))
  using events = new RingReader(kernel.map('guard_events'))
  // What an earlier sensor did not read is of its rules.
  events.read(() => undefined)
  while (!signal.aborted) {
    const names = rules.names()
    events.read((data, at) => {
      const event = decodeGuardEvent(data, at)
      onGuardEvent?.(event, event.origin === 'rule' ? names.get(event.id) : undefined)
      const key = keyOfEvent(event, names)
      if (key !== undefined) alerts.sample(key, { ...event, seenAtMs: bootNsToWallTimeMs(event.atNs) })
    })
    const readings = [...ruleReadings(rules, mode), ...policyReadings(kernel)]
    for (const alert of alerts.look(readings, Date.now()))
      publisher.add(1, toBinary(AlertRaisedSchema, create(AlertRaisedSchema, { alert })), alert.alertId)
    await delay(LOOK_INTERVAL_MS, undefined, { signal }).catch(() => undefined)
  }
}

function ruleReadings(rules: KernelRules, mode: GuardMode): Reading[] {
  return rules.readings().flatMap(({ name, spec, matched, over }) => {
    if (spec.action === 'allow') return []
    const isAlert = spec.action === 'alert'
    return {
      ...{ key: ruleKey(name), name: `KernelRule/${name}`, when: isAlert ? 'alert' : 'drop' },
      ...{ packets: isAlert ? matched : over, audited: spec.mode === 'audit' || mode === 'audit' },
    }
  })
}

function policyReadings(kernel: Kernel): Reading[] {
  return POLICIES.map(({ counter, name }) => {
    return { key: counter, name, when: 'drop', packets: kernel.count(counter), audited: false }
  })
}

/** Undefined for what raises no alert here: blocks have theirs from whoever decided them. */
function keyOfEvent({ origin, verdict, id }: GuardEvent, names: ReadonlyMap<number, string>): string | undefined {
  if (origin === 'policy') return verdict
  const name = origin === 'rule' ? names.get(id) : undefined
  return name === undefined ? undefined : ruleKey(name)
}

function ruleKey(name: string): string {
  return `rule/${name}`
}
