import { Counter, Histogram, type Registry } from 'prom-client'

/** Metrics of the bus library, one set a process. */
export interface BusMetrics {
  readonly published: Counter<'subject' | 'result'>
  readonly deliveries: Counter<'consumer' | 'outcome'>
  readonly deadLetters: Counter<'consumer' | 'reason'>
  readonly feedRestarts: Counter<'feed' | 'cause'>
  readonly undecodable: Counter<'feed'>
  readonly calls: Histogram<'method' | 'result'>
  readonly answers: Histogram<'method' | 'result'>
}

const RPC_BUCKETS_SECONDS = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1, 5]

/** Registers the bus metrics. Labels come from the schema and the topology only, so their number is fixed. */
export function busMetrics(registry: Registry): BusMetrics {
  const registers = [registry]
  return {
    published: new Counter({
      name: 'tollward_bus_published_total',
      help: 'Events handed to the bus, by whether it acknowledged them; broadcasts, by whether they were sent.',
      labelNames: ['subject', 'result'],
      registers,
    }),
    deliveries: new Counter({
      name: 'tollward_bus_deliveries_total',
      help: 'Messages a durable consumer handled, by outcome.',
      labelNames: ['consumer', 'outcome'],
      registers,
    }),
    deadLetters: new Counter({
      name: 'tollward_bus_dead_letters_total',
      help: 'Messages put aside because no handler could take them.',
      labelNames: ['consumer', 'reason'],
      registers,
    }),
    feedRestarts: new Counter({
      name: 'tollward_bus_feed_restarts_total',
      help: 'Feeds read again because the connection or a message was lost.',
      labelNames: ['feed', 'cause'],
      registers,
    }),
    undecodable: new Counter({
      name: 'tollward_bus_undecodable_total',
      help: 'Messages of a feed, bucket or live subject whose bytes do not have the declared type; they were passed over.',
      labelNames: ['feed'],
      registers,
    }),
    calls: new Histogram({
      name: 'tollward_bus_call_seconds',
      help: 'Time until a called method answered.',
      labelNames: ['method', 'result'],
      buckets: RPC_BUCKETS_SECONDS,
      registers,
    }),
    answers: new Histogram({
      name: 'tollward_bus_answer_seconds',
      help: 'Time this process took to answer a method.',
      labelNames: ['method', 'result'],
      buckets: RPC_BUCKETS_SECONDS,
      registers,
    }),
  }
}
