import { type DescMessage, type MessageShape, toBinary } from '@bufbuild/protobuf'
import { headers, nuid } from '@nats-io/transport-node'
import type { BroadcastContract, EventContract } from '@tollward/contracts'
import { busError } from './errors.ts'
import type { Session } from './session.ts'

const PUBLISH_TIMEOUT_MS = 3000

export interface PublishOptions {
  /** Event id: two publications with one id within the stream's window are stored once. Default: random. */
  readonly id?: string
  /** Trailing subject token, for filtering. */
  readonly key?: string
  /** W3C trace context of the request that caused it. */
  readonly traceparent?: string
}

export interface Published {
  readonly sequence: number
  /** The stream had this id already. */
  readonly duplicate: boolean
}

/** Publishes an event and waits until its stream has it. AppError `unavailable` or `deadline_exceeded` otherwise. */
export async function publish<Desc extends DescMessage>(
  session: Session,
  event: EventContract<Desc>,
  message: MessageShape<Desc>,
  options: PublishOptions = {},
): Promise<Published> {
  const subject = options.key === undefined ? event.subject : `${event.subject}.${options.key}`
  return store(session, { subject, label: event.subject, bytes: toBinary(event.schema, message) }, options)
}

/** Publishes bytes that have no schema of ours, such as OCSF JSON, and waits until a stream has them. */
export async function publishBytes(
  session: Session,
  subject: string,
  bytes: Uint8Array,
  options: Omit<PublishOptions, 'key'> = {},
): Promise<Published> {
  return store(session, { subject, label: subject, bytes }, options)
}

/**
 * Appends an event only if the stream's last sequence is the expected one: of several writers one wins, the others get
 * AppError `conflict`, read on and decide again. Returns the new sequence.
 */
export async function append<Desc extends DescMessage>(
  session: Session,
  event: EventContract<Desc>,
  message: MessageShape<Desc>,
  expectedLastSequence: number,
  options: PublishOptions = {},
): Promise<number> {
  const letter = { subject: event.subject, label: event.subject, bytes: toBinary(event.schema, message) }
  const { sequence } = await store(session, letter, options, expectedLastSequence)
  return sequence
}

/**
 * Tells whoever listens, without an answer. Nothing is told while the server is gone: the client would keep it, without end, and
 * tell it when it is no longer true. Returns whether it was sent.
 */
export function broadcast<Desc extends DescMessage>(
  session: Session,
  { schema, subject }: BroadcastContract<Desc>,
  message: MessageShape<Desc>,
  connected: boolean,
): boolean {
  const sent = connected && send(session, subject, toBinary(schema, message))
  session.metrics.published.inc({ subject, result: sent ? 'sent' : 'failed' })
  return sent
}

/** Whether the client took it: it does not while it closes, or if the server takes no message of this size. */
function send(session: Session, subject: string, bytes: Uint8Array): boolean {
  try {
    session.connection.publish(subject, bytes)
    return true
  } catch (error) {
    session.log.debug({ err: error, subject }, 'broadcast could not be sent')
    return false
  }
}

interface Letter {
  readonly subject: string
  /** Subject without key: label values come from closed sets. */
  readonly label: string
  readonly bytes: Uint8Array
}

async function store(
  session: Session,
  letter: Letter,
  options: PublishOptions,
  expectedLastSequence?: number,
): Promise<Published> {
  const head = headers()
  head.set('Nats-Msg-Id', options.id ?? nuid.next())
  if (options.traceparent !== undefined) head.set('traceparent', options.traceparent)
  if (expectedLastSequence !== undefined) head.set('Nats-Expected-Last-Sequence', String(expectedLastSequence))
  try {
    const ack = await session.requests.request(letter.subject, letter.bytes, PUBLISH_TIMEOUT_MS, head)
    const duplicate = ack.duplicate === true
    session.metrics.published.inc({ subject: letter.label, result: duplicate ? 'duplicate' : 'stored' })
    return { sequence: Number(ack.seq), duplicate }
  } catch (error) {
    session.metrics.published.inc({ subject: letter.label, result: 'failed' })
    throw busError(error, `Publishing ${letter.label}`)
  }
}
