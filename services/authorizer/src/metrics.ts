import { Counter, type Registry } from 'prom-client'

/** Metrics of the authorizer beside those of @tollward/decision. */
export interface AuthorizerMetrics {
  readonly requests: Counter<'protocol'>
  readonly undecidable: Counter<'protocol'>
  readonly unapplied: Counter<'part'>
  readonly rateLimits: Counter<'outcome'>
  readonly failedCalls: Counter<'code'>
  readonly connectionFaults: Counter<'fault'>
  readonly tlsReloads: Counter<'result'>
}

/** Registers them all. */
export function authorizerMetrics(registry: Registry): AuthorizerMetrics {
  const registers = [registry]
  return {
    requests: new Counter({
      name: 'tollward_authorizer_requests_total',
      help: 'Requests that proxies asked about, by protocol.',
      labelNames: ['protocol'],
      registers,
    }),
    undecidable: new Counter({
      name: 'tollward_authorizer_undecidable_total',
      help: 'Questions of proxies that lack what a decision needs, or are no question at all; each was refused.',
      labelNames: ['protocol'],
      registers,
    }),
    unapplied: new Counter({
      name: 'tollward_authorizer_unapplied_total',
      help: 'Requests refused because the asking proxy does not do what the rule wants of it, by what that is.',
      labelNames: ['part'],
      registers,
    }),
    rateLimits: new Counter({
      name: 'tollward_authorizer_rate_limits_total',
      help: 'Questions about limits alone: within all, over one, over one that only observes, or under none.',
      labelNames: ['outcome'],
      registers,
    }),
    failedCalls: new Counter({
      name: 'tollward_authorizer_grpc_failed_total',
      help: 'gRPC calls that did not end with OK, by status code: given up by the client (1), too late (4), or not to be read.',
      labelNames: ['code'],
      registers,
    }),
    connectionFaults: new Counter({
      name: 'tollward_authorizer_grpc_connection_faults_total',
      help: 'gRPC connections that were cut off, by whose fault: a client that broke the protocol or a limit, or a network that broke or fell silent.',
      labelNames: ['fault'],
      registers,
    }),
    tlsReloads: new Counter({
      name: 'tollward_authorizer_tls_reloads_total',
      help: 'Changes of the certificate files, taken or refused: then the one before stays in use.',
      labelNames: ['result'],
      registers,
    }),
  }
}
