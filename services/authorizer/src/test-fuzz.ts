import assert from 'node:assert/strict'
import { fromBinary, toBinary } from '@bufbuild/protobuf'
import { type CheckRequest, CheckRequestSchema } from '@tollward/contracts/envoy'
import type { Conversation } from '@tollward/testkit/fuzz'
import { MessageReader } from './adapters/grpc-messages.ts'
import { readCheckRequest } from './domain/check-request.ts'
import { comparable, reference } from './domain/test-check-reference.ts'

const MESSAGE_BYTES_MAX = 512

/**
 * What protobuf-es would write is read as it reads it; whatever else, nothing is thrown. It also reads what is no message: fields that reach
 * beyond the one that they are in, or of another wire type than declared.
 */
export function readQuestion(conversation: Conversation): void {
  const wire = Buffer.concat(conversation.map(({ bytes }) => bytes))
  const question = readCheckRequest(wire)
  const expected = readByLibrary(wire)
  if (!expected || !wire.equals(toBinary(CheckRequestSchema, expected))) return
  assert(question, 'what is a question, is read')
  const isMap = expected.attributes?.request?.http?.headerMap === undefined
  assert.deepEqual(comparable(question, isMap), comparable(reference(expected), isMap))
}

function readByLibrary(wire: Uint8Array): CheckRequest | undefined {
  try {
    return fromBinary(CheckRequestSchema, wire)
  } catch {
    // It throws errors of several kinds for what is none.
    return undefined
  }
}

/** Messages are the same however their bytes came, and end with the same failure. */
export function readMessages(conversation: Conversation): void {
  const chunks = conversation.map(({ bytes }) => bytes)
  assert.deepEqual(messagesOf(chunks), messagesOf([Buffer.concat(chunks)]), 'cut otherwise, the same messages')
}

function messagesOf(chunks: readonly Buffer[]): string[] {
  const reader = new MessageReader(MESSAGE_BYTES_MAX)
  const all: string[] = []
  for (const chunk of chunks) {
    const lent = Buffer.from(chunk)
    const messages = reader.push(lent)
    // What was whole before the failure is not asked for any more.
    if ('code' in messages) return [`failed ${messages.code}`]
    all.push(...messages.map((message) => message.toString('latin1')))
    lent.fill(0)
  }
  return [...all, `within ${reader.isWithin}`]
}
