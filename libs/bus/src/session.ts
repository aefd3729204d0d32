import type { JetStreamClient, JetStreamManager } from '@nats-io/jetstream'
import type { NatsConnection } from '@nats-io/transport-node'
import type { Logger } from 'pino'
import type { BusMetrics } from './metrics.ts'
import type { Requests } from './requests.ts'

/** What every part of this library works with: one connection and what belongs to it. */
export interface Session {
  readonly name: string
  readonly connection: NatsConnection
  readonly js: JetStreamClient
  readonly manager: JetStreamManager
  /** Requests to JetStream that are made for each request from outside. */
  readonly requests: Requests
  readonly log: Logger
  readonly metrics: BusMetrics
}
