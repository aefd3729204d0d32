import assert from 'node:assert/strict'
import { type DescMessage, type DescMethod, type DescService, getOption } from '@bufbuild/protobuf'
import { broadcast, bucket, event, responder } from './gen/tollward/options/v1/options_pb.ts'

/** One event: its schema, and the subject and stream that the schema itself declares. */
export interface EventContract<Desc extends DescMessage = DescMessage> {
  readonly schema: Desc
  /** tollward.<area>.v1.<noun>.<past participle>, without the key that a publisher may append. */
  readonly subject: string
  readonly stream: string
}

/** What is told to whoever listens now: its schema, and the subject that the schema itself declares. No stream keeps it. */
export interface BroadcastContract<Desc extends DescMessage = DescMessage> {
  readonly schema: Desc
  /** tollward.<area>.v1.<noun>.<past participle>; never with a key. */
  readonly subject: string
}

/** A key/value bucket whose values have one schema. */
export interface BucketContract<Desc extends DescMessage = DescMessage> {
  readonly schema: Desc
  readonly name: string
}

/** Reads an event's subject and stream from its schema. Throws if the message declares none: that is a programmer's error. */
export function contract<Desc extends DescMessage>(schema: Desc): EventContract<Desc> {
  const { subject, stream } = getOption(schema, event)
  assert(subject !== '' && stream !== '', `${schema.typeName} declares no subject and stream`)
  return { schema, subject, stream }
}

/** Reads a broadcast's subject from its schema. Throws if the message declares none: that is a programmer's error. */
export function broadcastContract<Desc extends DescMessage>(schema: Desc): BroadcastContract<Desc> {
  const { subject } = getOption(schema, broadcast)
  assert(subject !== '', `${schema.typeName} declares no subject of a broadcast`)
  return { schema, subject }
}

/** Reads the name of the bucket that holds values of this schema. Throws if the message declares none. */
export function bucketContract<Desc extends DescMessage>(schema: Desc): BucketContract<Desc> {
  const { name } = getOption(schema, bucket)
  assert(name !== '', `${schema.typeName} declares no bucket`)
  return { schema, name }
}

/** The name of the service that answers these methods on the bus. Throws if the proto service declares none. */
export function responderName(service: DescService): string {
  const { name } = getOption(service, responder)
  assert(name !== '', `${service.typeName} declares no responder`)
  return name
}

/** The subject on which a method is asked: <service>.v1.rpc.<method in snake case>. */
export function methodSubject(service: DescService, method: DescMethod): string {
  return `${responderName(service)}.v1.rpc.${method.name.replace(/(?<=[a-z0-9])[A-Z]/g, '_$&').toLowerCase()}`
}
