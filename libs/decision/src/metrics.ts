import { Counter, Gauge, Histogram, type Registry } from 'prom-client'
import { REASONS, type Reason } from './domain/reasons.ts'

export type DecisionOutcome = 'admitted' | 'refused' | 'would-refuse'

const DURATION_BUCKETS_SECONDS = [0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.02, 0.1, 0.5, 1]

/** Metrics of decisions, one set a process; label values come from closed sets and exist from the start. */
export interface DecisionMetrics {
  readonly count: (outcome: DecisionOutcome, reason: Reason | 'none') => void
  readonly seconds: Histogram
  readonly tokenLookups: Counter<'result'>
  readonly evictions: Counter<'table'>
  readonly rateUses: Counter<'result'>
  readonly rateMessagesMissed: Counter
  readonly leases: Counter<'result'>
  readonly quotaRecords: Counter<'result'>
  readonly quotaLost: Counter
  readonly redemptions: Counter<'outcome'>
  readonly quotes: Counter<'result'>
  readonly records: Counter<'result'>
  readonly documentFaults: Counter
  readonly blocksRefused: Counter
  readonly failures: Counter
}

const OUTCOMES: readonly DecisionOutcome[] = ['admitted', 'refused', 'would-refuse']

/** Registers them all. */
export function decisionMetrics(registry: Registry): DecisionMetrics {
  const registers = [registry]
  const counter = <L extends string>(name: string, help: string, labelNames: L[] = []) =>
    new Counter({ name: `tollward_decision_${name}_total`, help, labelNames, registers })
  return {
    count: decisionCounter(registry),
    seconds: new Histogram({
      name: 'tollward_decision_seconds',
      help: 'From the facts of a request to its decision.',
      buckets: DURATION_BUCKETS_SECONDS,
      registers,
    }),
    tokenLookups: counter('token_lookups', 'Tokens looked up, by where the answer came from.', ['result']),
    evictions: counter('evictions', 'Entries pushed out of a full table before their time.', ['table']),
    rateUses: counter(
      'rate_uses',
      'Uses of limits told to other replicas, told too late, or lost, and heard of them, or unusable.',
      ['result'],
    ),
    rateMessagesMissed: counter('rate_messages_missed', 'Messages of other replicas about limits that never came.'),
    leases: counter('leases', 'Chunks of quota asked for, by what came of it.', ['result']),
    quotaRecords: counter('quota_records', 'Records of what was served of a chunk, by what came of them.', ['result']),
    quotaLost: counter('quota_lost', 'Requests that count as served because their chunk could not be given back.'),
    redemptions: counter('redemptions', 'Transactions presented, by what the verifier said.', ['outcome']),
    quotes: counter('quotes', 'Prices for refusals, by what came of asking.', ['result']),
    records: counter('records', 'Calls for the record: published one by one, folded into another one, or lost.', [
      'result',
    ]),
    documentFaults: counter(
      'document_faults',
      'Stored documents that could not be read; the ones before stay in force.',
    ),
    blocksRefused: counter('caller_blocks_refused', 'Blocks of callers that are not enforced: there are too many.'),
    failures: counter('failures', 'Decisions that ended in an error of ours; each was a refusal.'),
  }
}

/** Sizes of what decisions are made from, read when metrics are. */
export function gaugeSizes(registry: Registry, sizes: Readonly<Record<string, () => number>>): void {
  new Gauge({
    name: 'tollward_decision_entries',
    help: 'Entries that decisions are made from, by table.',
    labelNames: ['table'],
    registers: [registry],
    collect() {
      for (const [table, size] of Object.entries(sizes)) this.set({ table }, size())
    },
  })
}

/** Counting is on the way of every request, so its counters are looked up once, here. */
function decisionCounter(registry: Registry): DecisionMetrics['count'] {
  const decisions = new Counter({
    name: 'tollward_decisions_total',
    help: 'Decisions, by outcome and reason.',
    labelNames: ['outcome', 'reason'],
    registers: [registry],
  })
  const children = new Map(OUTCOMES.map((outcome) => [outcome, new Map<string, Counter.Internal>()]))
  const child = (outcome: DecisionOutcome, reason: string) => {
    const ofOutcome = children.get(outcome)
    const known = ofOutcome?.get(reason) ?? decisions.labels({ outcome, reason })
    ofOutcome?.set(reason, known)
    return known
  }
  child('admitted', 'none').inc(0)
  for (const outcome of OUTCOMES.slice(1)) for (const reason of Object.keys(REASONS)) child(outcome, reason).inc(0)
  return (outcome, reason) => child(outcome, reason).inc()
}
