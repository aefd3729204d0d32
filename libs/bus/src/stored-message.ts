import { JetStreamApiError } from '@nats-io/jetstream'
import type { Session } from './session.ts'

const READ_TIMEOUT_MS = 3000

/** JetStream's number for "no message found". */
const NO_MESSAGE_FOUND = 10037

const encoder = new TextEncoder()

/** A message as its stream keeps it. */
interface StoredMessage {
  readonly subject: string
  readonly seq: number
  readonly data: Uint8Array
  readonly headers: Map<string, string> | undefined
}

/** Which message of a stream: one by its sequence, or the last one under a subject. */
type Query = { readonly seq: number } | { readonly last_by_subj: string }

/** A message of a stream, by its leader; undefined if the stream has none such. */
export async function storedMessage(
  session: Session,
  stream: string,
  query: Query,
): Promise<StoredMessage | undefined> {
  const payload = encoder.encode(JSON.stringify(query))
  try {
    const answer = await session.requests.request(`$JS.API.STREAM.MSG.GET.${stream}`, payload, READ_TIMEOUT_MS)
    const message = answer.message as { subject: string; seq: number; hdrs?: string; data?: string }
    const headers = message.hdrs === undefined ? undefined : parsedHeaders(message.hdrs)
    return { subject: message.subject, seq: message.seq, data: Buffer.from(message.data ?? '', 'base64'), headers }
  } catch (error) {
    if (error instanceof JetStreamApiError && error.code === NO_MESSAGE_FOUND) return undefined
    throw error
  }
}

/** Headers as the stream keeps them: a line of version, then `Name: value` in each. */
function parsedHeaders(base64: string): Map<string, string> {
  const lines = Buffer.from(base64, 'base64').toString().split('\r\n')
  return new Map(
    lines.slice(1).flatMap((line) => {
      const colon = line.indexOf(':')
      return colon < 0 ? [] : [[line.slice(0, colon), line.slice(colon + 1).trim()] as const]
    }),
  )
}
