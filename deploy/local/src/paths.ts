import { join, resolve } from 'node:path'

/** The repository this file is in. */
export const REPOSITORY = resolve(import.meta.dirname, '../../..')

/** Where Node keeps its modules compiled, so that a program that died is back sooner. The tollward command does the same. */
export const COMPILE_CACHE = join(REPOSITORY, '.tollward/compile-cache')

/** Where the stack keeps its state: everything below one directory, by default .tollward/ in the repository. */
export interface Paths {
  readonly state: string
  readonly keys: string
  readonly natsSeed: (name: string) => string
  readonly issuerSecret: string
  /** Secret of the operator's client, so that its file can be written again when addresses change. */
  readonly operatorSecret: string
  /** What auth-issuer is told of the operator's client. */
  readonly operatorClient: string
  /** What the tollward command takes. */
  readonly operator: string
  /** What a SIEM's client needs to connect. */
  readonly siem: string
  readonly walletSeed: string
  readonly caKey: string
  readonly caCertificate: string
  readonly gatewayKey: string
  readonly gatewayCertificate: string
  /** Of auth-issuer, for clients with certificates. */
  readonly issuerKey: string
  readonly issuerCertificate: string
  readonly natsConfig: string
  readonly natsStore: string
  readonly bitcoin: string
  readonly findings: string
  readonly log: (name: string) => string
  readonly lock: string
}

/** Paths below a state directory. */
export function pathsIn(state: string): Paths {
  const keys = join(state, 'keys')
  return {
    state,
    keys,
    natsSeed: (name) => join(keys, 'nats', `${name}.nk`),
    issuerSecret: join(keys, 'issuer-secret'),
    operatorSecret: join(keys, 'operator-secret'),
    operatorClient: join(keys, 'operator-client.json'),
    operator: join(state, 'operator.json'),
    siem: join(state, 'siem.json'),
    walletSeed: join(keys, 'wallet-seed'),
    caKey: join(keys, 'ca.key'),
    caCertificate: join(state, 'tls', 'ca.pem'),
    gatewayKey: join(keys, 'gateway.key'),
    gatewayCertificate: join(state, 'tls', 'gateway.pem'),
    issuerKey: join(keys, 'issuer-tls.key'),
    issuerCertificate: join(state, 'tls', 'issuer.pem'),
    natsConfig: join(state, 'nats', 'nats.conf'),
    natsStore: join(state, 'nats', 'store'),
    bitcoin: join(state, 'bitcoin'),
    findings: join(state, 'findings.jsonl'),
    log: (name) => join(state, 'logs', `${name}.log`),
    lock: join(state, 'stack.lock'),
  }
}
