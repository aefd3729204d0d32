import { SOURCE_STATES, type SourceState } from '@tollward/bitcoin'
import { Counter, Gauge, type Registry } from 'prom-client'

/** Metrics of payment-verifier. Labels come from closed sets; what a caller sends is never one. */
export type Metrics = ReturnType<typeof verifierMetrics>

/** What is read when the metrics are asked for. */
export interface MetricSources {
  readonly tipHeight: () => number
  readonly nodeSilentForMs: () => number
  readonly nodes: () => readonly { readonly state: SourceState }[]
  readonly ledgerSequence: () => number
  readonly unknownEntries: () => number
  readonly nextAddressIndex: () => number
  readonly conducts: () => number
}

export function verifierMetrics(registry: Registry) {
  const registers = [registry]
  const counter = <L extends string>(name: string, help: string, labelNames: readonly L[] = []) =>
    new Counter({ name: `tollward_payment_${name}_total`, help, labelNames, registers })
  return {
    blocks: counter('blocks', 'Blocks that joined or left the best chain.', ['change']),
    nodeTroubles: counter('node_troubles', 'Rounds of following the chain that failed and were repeated.', ['code']),
    appended: counter('ledger_entries', 'Ledger entries written, by kind and whether another writer was first.', [
      'entry',
      'result',
    ]),
    invoiceRequests: counter('invoice_requests', 'Requests over HTTP, by what came of them.', ['request', 'result']),
    streamsRefused: counter('streams_refused', 'Streams of invoices that were one too many.', ['reason']),
    streamsUnread: counter('streams_unread', 'Streams of invoices that ended because nobody read on.'),
    redemptions: counter('redemptions', 'Transactions presented, by outcome.', ['outcome']),
    leases: counter('leases', 'Chunks of quotas that decision points asked for, by what came of it.', ['result']),
    assumedRequests: counter(
      'assumed_requests',
      'Requests that count as served because their decision point was not heard of any more.',
    ),
    passConflicts: counter('pass_conflicts', 'Changes of a pass that another replica was faster with.'),
    conductEvents: counter('conduct_events', 'Events about the conduct of clients, by what came of them.', [
      'source',
      'result',
    ]),
    conductChanges: counter('conduct_changes', 'Changes of conducts, by whether they could be written.', ['result']),
    documentFaults: counter('document_faults', 'Documents that cannot be read; what was in force stays.'),
  }
}

/** Gauges of what the running parts know. */
export function registerGauges(registry: Registry, sources: MetricSources): void {
  const gauge = (name: string, help: string, read: () => number) =>
    new Gauge({
      name: `tollward_payment_${name}`,
      help,
      registers: [registry],
      collect() {
        this.set(read())
      },
    })
  new Gauge({
    name: 'tollward_payment_nodes',
    help: 'Bitcoin nodes by what became of them: one is followed, equal ones would do as well.',
    labelNames: ['state'],
    registers: [registry],
    collect() {
      for (const state of SOURCE_STATES)
        this.set({ state }, sources.nodes().filter((node) => node.state === state).length)
    },
  })
  gauge('tip_height', 'Height of the last block that was handled.', sources.tipHeight)
  gauge('node_silent_seconds', 'How long the bitcoin node has not answered.', () => sources.nodeSilentForMs() / 1000)
  gauge('ledger_sequence', 'Last entry of the ledger known here.', sources.ledgerSequence)
  gauge('ledger_unknown_entries', 'Ledger entries that this version could not use.', sources.unknownEntries)
  gauge('conduct_clients', 'Clients whose conduct is known.', sources.conducts)
  gauge(
    'address_index_next',
    'Next address index: a wallet that recovers the account has to look this far.',
    sources.nextAddressIndex,
  )
}
