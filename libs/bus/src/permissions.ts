import { DEAD_LETTER_SUBJECT } from '@tollward/contracts'
import { ACCESS, DURABLES } from './topology.ts'

/** Subjects of one NATS credential, as the server's configuration writes them. */
export interface Permissions {
  readonly publish: readonly string[]
  readonly subscribe: readonly string[]
  /** May answer on the reply subject of a request it got. */
  readonly allowResponses: boolean
}

/**
 * Where a service's replies arrive. Each has its own: a credential that may subscribe to the default _INBOX.> reads
 * everybody's replies, internal tokens among them.
 */
export function inboxPrefix(service: string): string {
  return `_INBOX_${service}`
}

/** What the credential of a service may publish and subscribe, from its row in ACCESS. Throws for a name that has no row. */
export function permissionsOf(service: string): Permissions {
  const access = ACCESS[service]
  if (!access) throw new RangeError(`${service} has no row in ACCESS`)
  const publish = new Set<string>(access.publishes)
  for (const durable of access.consumes ?? []) addDurable(publish, durable)
  if (access.consumes) publish.add(`${DEAD_LETTER_SUBJECT}.*`)
  for (const { stream, filter } of access.follows ?? []) addFeed(publish, stream, filter)
  for (const bucket of access.readsBuckets ?? []) addBucketReader(publish, bucket)
  for (const bucket of access.writesBuckets ?? []) publish.add(`$KV.${bucket}.>`)
  for (const stream of access.looksUp ?? []) publish.add(`$JS.API.STREAM.MSG.GET.${stream}`)
  for (const call of access.calls ?? []) publish.add(callSubject(call))
  const subscribe = new Set<string>([`${inboxPrefix(service)}.>`, ...(access.listens ?? [])])
  for (const responder of access.serves ?? []) subscribe.add(`${responder}.v1.rpc.*`)
  return {
    publish: [...publish].sort(),
    subscribe: [...subscribe].sort(),
    allowResponses: access.serves !== undefined,
  }
}

/**
 * What whoever reads a durable publishes: to ask what it is, to pull, to acknowledge. A SIEM's account imports these subjects
 * of its own durable and nothing else.
 */
export function durableSubjects(durable: string): readonly string[] {
  const { stream } = durableTopology(durable)
  return [
    `$JS.API.CONSUMER.INFO.${stream}.${durable}`,
    `$JS.API.CONSUMER.MSG.NEXT.${stream}.${durable}`,
    `$JS.ACK.${stream}.${durable}.>`,
  ]
}

function callSubject(call: string): string {
  const [responder, method = '*'] = call.split('.')
  return `${responder}.v1.rpc.${method}`
}

function durableTopology(durable: string) {
  const topology = DURABLES[durable]
  if (!topology) throw new RangeError(`${durable} has no row in DURABLES`)
  return topology
}

function addDurable(publish: Set<string>, durable: string): void {
  for (const subject of durableSubjects(durable)) publish.add(subject)
}

function addFeed(publish: Set<string>, stream: string, filter: string): void {
  publish.add(`$JS.API.CONSUMER.CREATE.${stream}.*.${filter}`)
  publish.add(`$JS.FC.${stream}.>`)
}

function addBucketReader(publish: Set<string>, bucket: string): void {
  publish.add(`$JS.API.STREAM.MSG.GET.KV_${bucket}`)
  addFeed(publish, `KV_${bucket}`, `$KV.${bucket}.>`)
}
