import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import type { Field } from './hpack.ts'
import { encodeFields } from './hpack.ts'
import type { Http2Request } from './http2-fields.ts'
import { type Http2Limits, Http2ServerConnection } from './http2-server.ts'
import type { Http2Stream } from './http2-stream.ts'
import { OutputBuffers } from './output.ts'

export const LIMITS: Http2Limits = {
  streamsMax: 100,
  headerFieldsMax: 64,
  headerBytesMax: 16 * 1024,
  streamWindowBytes: 128 * 1024,
  connectionWindowBytes: 1024 * 1024,
  heldBytesMax: 1024 * 1024,
  resetsPerSecondMax: 1000,
  idleFramesPerSecondMax: 1000,
}

/** What came of one request. */
export interface Seen {
  readonly head: Http2Request
  readonly body: Buffer
}

const HEAD: Field[] = [
  [':status', '200'],
  ['content-type', 'text/plain'],
]

/** A server that answers each whole request with its body, and says what it has seen. */
export async function serve(limits: Partial<Http2Limits> = {}) {
  const seen: Seen[] = []
  const connections = new Set<Http2ServerConnection>()
  const sockets = new Set<Socket>()
  const buffers = new OutputBuffers()
  const events = {
    request: (stream: Http2Stream, head: Http2Request) => {
      const parts: Buffer[] = []
      return {
        data: (chunk: Buffer, isLast: boolean) => {
          parts.push(Buffer.from(chunk))
          stream.release(chunk.length)
          if (!isLast) return
          const body = Buffer.concat(parts)
          seen.push({ head, body })
          stream.head(encodeFields(HEAD))
          stream.data([body.length > 0 ? body : Buffer.from('empty')], encodeFields([['x-end', 'yes']]))
        },
        closed: () => {},
      }
    },
    closed: (connection: Http2ServerConnection) => {
      connections.delete(connection)
    },
  }
  const server = createServer({ noDelay: true }, (socket) => {
    sockets.add(socket)
    connections.add(new Http2ServerConnection(socket, { limits: { ...LIMITS, ...limits }, events, buffers }))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    seen,
    connections,
    isPaused: () => [...sockets].some((socket) => socket.isPaused()),
    /** Of all that clients have not read. */
    waitingBytes: () => [...sockets].reduce((sum, socket) => sum + socket.writableLength, 0),
    [Symbol.asyncDispose]: async () => {
      for (const connection of connections) connection.destroy()
      server.close()
      await once(server, 'close')
    },
  }
}
