import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants } from 'node:http2'
import { toAppError } from '@tollward/errors'
import type { FieldList } from '../domain/forwarding.ts'
import {
  failing,
  PATIENT_TIMEOUT_MS,
  type Upstream,
  type UpstreamCall,
  UpstreamFull,
  type UpstreamListener,
  type UpstreamRequest,
  UpstreamTimeout,
} from './upstream.ts'

/** Connections to the API. */
const SESSIONS_MAX = 8
/** Requests at once on one connection before there is another; the API may allow fewer. */
const STREAMS_PER_SESSION = 100
/** Requests on one connection, under way and waiting. */
const STREAMS_MAX = 1000
/** What an answer's trailers and header fields may be: fields, and MB of a connection's memory. */
const HEADER_PAIRS_MAX = 200
const SESSION_MEMORY_MB = 64

interface Session {
  readonly session: ClientHttp2Session
  streams: number
}

/** The API over HTTP/2: h2 or h2c as the URL says. `timeoutMs`: to connect, for the headers, and between parts of the body. */
export function openUpstreamHttp2(url: string, timeoutMs: number): Upstream {
  const open = new Set<Session>()
  const begin = (): Session => {
    const session = connect(url, {
      maxHeaderListPairs: HEADER_PAIRS_MAX,
      maxSessionMemory: SESSION_MEMORY_MB,
      settings: { enablePush: false },
    })
    const one: Session = { session, streams: 0 }
    open.add(one)
    const connecting = setTimeout(() => session.destroy(new UpstreamTimeout('connecting took too long')), timeoutMs)
    session.once('connect', () => clearTimeout(connecting))
    // Its requests hear of it each for itself.
    session.on('error', () => {})
    session.once('goaway', () => open.delete(one))
    session.once('close', () => {
      clearTimeout(connecting)
      open.delete(one)
    })
    return one
  }
  const leastBusy = () => {
    let least: Session | undefined
    for (const one of open) {
      if (!one.session.closed && (!least || one.streams < least.streams)) least = one
    }
    return least && (least.streams < STREAMS_PER_SESSION || open.size >= SESSIONS_MAX) ? least : begin()
  }
  return {
    send: (request, listener) => {
      const one = leastBusy()
      if (one.streams >= STREAMS_MAX) {
        return failing(listener, new UpstreamFull('too many requests wait for the API'))
      }
      one.streams += 1
      try {
        const stream = one.session.request(rawRequest(request, url), { endStream: request.body === undefined })
        stream.once('close', () => {
          one.streams -= 1
        })
        return call(stream, request, listener, timeoutMs)
      } catch (error) {
        // Fields that HTTP/2 does not allow, or a connection that has just ended.
        one.streams -= 1
        return failing(listener, toAppError(error))
      }
    },
    [Symbol.asyncDispose]: async () => {
      for (const { session } of open) session.destroy()
    },
  }
}

function rawRequest({ method, path, fields }: UpstreamRequest, url: string): string[] {
  const raw = [':method', method, ':scheme', new URL(url).protocol.slice(0, -1), ':path', path]
  for (let index = 0; index < fields.length; index += 2) {
    const [name = '', value = ''] = [fields[index], fields[index + 1]]
    raw.push(name === 'host' ? ':authority' : name, value)
  }
  // That trailers are understood is true here, and servers of gRPC want to hear it.
  return [...raw, 'te', 'trailers']
}

function call(
  stream: ClientHttp2Stream,
  { body, patient }: UpstreamRequest,
  listener: UpstreamListener,
  timeoutMs: number,
): UpstreamCall {
  let over = false
  let began = false
  let trailers: FieldList = []
  const fail = (error: Error) => {
    if (over) return
    over = true
    stream.close(constants.NGHTTP2_CANCEL)
    listener.onFailure(error)
  }
  const idleMs = patient ? PATIENT_TIMEOUT_MS : timeoutMs
  stream.setTimeout(idleMs, () => fail(new UpstreamTimeout(`nothing came for ${idleMs} ms`)))
  stream.on('headers', (headers, _flags, raw: string[]) => {
    if (headers[':status'] === 103) listener.onHint(raw)
  })
  stream.on('response', (headers, flags, raw: string[]) => {
    began = true
    const ends = (flags & constants.NGHTTP2_FLAG_END_STREAM) !== 0
    const status = Number(headers[':status'])
    listener.onHead(status, raw.slice(statusEnd(raw)), ends)
  })
  stream.on('trailers', (_headers, _flags, raw: string[]) => {
    trailers = raw
  })
  stream.on('data', (chunk: Buffer) => listener.onPart(chunk))
  stream.on('error', fail)
  stream.on('close', () => {
    if (over) return
    if (!began || stream.rstCode !== constants.NGHTTP2_NO_ERROR || !stream.readableEnded)
      return fail(new Error(`the API closed the stream with ${stream.rstCode}`))
    over = true
    listener.onEnd(trailers)
  })
  if (body) {
    body.on('error', fail)
    body.pipe(stream)
  }
  return {
    pause: () => stream.pause(),
    resume: () => stream.resume(),
    abort: () => {
      over = true
      stream.close(constants.NGHTTP2_CANCEL)
    },
  }
}

/** Where the fields begin after :status. */
function statusEnd(raw: readonly string[]): number {
  return raw[0] === ':status' ? 2 : 0
}
