import { timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt'
import type { Bus } from '@tollward/bus'
import { contract, FINDING_STREAM, FINDING_SUBJECT } from '@tollward/contracts'
import { Severity } from '@tollward/contracts/detection'
import { type CallObserved, CallObservedSchema, FlowObservedSchema } from '@tollward/contracts/sensor'
import { AppError } from '@tollward/errors'
import { CLOCK_SKEW_MS, decisionTime } from '../domain/decision-id.ts'
import type { Metrics } from '../metrics.ts'
import type { AdminMethods, AdminStreams } from './calls.ts'

const ALERTS_DEFAULT = 100
const ALERTS_MAX = 1000
/** Without a time of the caller's: reading all 30 days would take long. */
const ALERTS_SINCE_MS = 24 * 3_600_000
/** How long the stream FINDINGS keeps them. */
const ALERTS_KEPT_MS = 30 * 24 * 3_600_000
/** Streams of flows at once: each gets every batch. */
const WATCHERS_MAX = 16
/** A node's name is one token of a subject. */
const NODE_NAME = /^[\w-]{1,253}$/

/** OCSF's words, as the last token of a finding's subject. */
const SEVERITIES: Readonly<Record<string, Severity>> = {
  informational: Severity.INFORMATIONAL,
  low: Severity.LOW,
  medium: Severity.MEDIUM,
  high: Severity.HIGH,
  critical: Severity.CRITICAL,
}

/** What sensors, decision points and alert-router said. */
export function observationMethods(bus: Bus): Pick<AdminMethods, 'listAlerts' | 'explainDecision'> {
  const calls = contract(CallObservedSchema)
  return {
    listAlerts: async ({ since, limit }) => {
      const now = Date.now()
      if (since && timestampMs(since) > now) return { findings: [] }
      const letters = await bus.history(FINDING_STREAM, `${FINDING_SUBJECT}.*`, {
        sinceMs: since ? Math.max(timestampMs(since), now - ALERTS_KEPT_MS) : now - ALERTS_SINCE_MS,
        limit: Math.min(limit || ALERTS_DEFAULT, ALERTS_MAX),
      })
      const findings = letters.map(({ subject, bytes, publishedAtMs }) => ({
        publishedAt: timestampFromMs(Math.trunc(publishedAtMs)),
        severity: SEVERITIES[subject.slice(FINDING_SUBJECT.length + 1)] ?? Severity.UNSPECIFIED,
        ocsfJson: Buffer.from(bytes).toString('utf8'),
      }))
      return { findings }
    },

    explainDecision: async ({ decisionId }) => {
      const decidedAtMs = decisionTime(decisionId, Date.now())
      const wanted = decisionId.toLowerCase()
      let found: CallObserved | undefined
      await using _past = await bus.follow(calls, { timeMs: decidedAtMs - CLOCK_SKEW_MS }, (call) => {
        if (call.decisionId === wanted) found = call
      })
      if (found) return { call: found }
      const reasons = 'of admissions only a sample is, and repeated refusals of one source are folded into their first'
      const next = 'Have the request repeated, or ask "npx --no tollward simulate" what would happen to it'
      throw new AppError('not_found', `Nothing is kept of that decision: ${reasons}. ${next}.`)
    },
  }
}

/** Streams flow batches as they come. A watcher that reads too slowly misses batches; they are counted. */
export function flowWatcher(bus: Bus, metrics: Metrics): AdminStreams['watchFlows'] {
  const flows = contract(FlowObservedSchema)
  let watchers = 0
  return async ({ node }, { offer }, signal) => {
    if (node !== '' && !NODE_NAME.test(node)) throw new AppError('invalid_argument', 'That is no name of a node.')
    if (watchers === WATCHERS_MAX) {
      throw new AppError('resource_exhausted', `Flows are watched ${WATCHERS_MAX} times already; end one of them.`)
    }
    metrics.flowWatchers.set(++watchers)
    const ended = Promise.withResolvers<void>()
    const end = () => ended.resolve()
    try {
      signal.addEventListener('abort', end, { once: true })
      if (signal.aborted) end()
      await using _feed = bus.listen(
        flows,
        (batch) => {
          if (!offer({ batch })) metrics.flowBatchesDropped.inc()
        },
        node === '' ? {} : { key: node },
      )
      await ended.promise
    } finally {
      signal.removeEventListener('abort', end)
      metrics.flowWatchers.set(--watchers)
    }
  }
}
