import type { Duplex } from 'node:stream'
import {
  CLIENT_PREFACE,
  ErrorCode,
  FRAME_BYTES,
  FrameFlag,
  FrameReader,
  FrameType,
  INTEGER_31_MAX,
  Setting,
  unpadded,
} from './frames.ts'
import { HpackDecoder } from './hpack.ts'
import { areTrailers, type Http2Request, requestHead } from './http2-fields.ts'
import { Http2Sender } from './http2-sender.ts'
import { type Http2Listener, Http2Stream } from './http2-stream.ts'
import { Output, type OutputBuffers } from './output.ts'
import { StreamTable } from './stream-table.ts'

/** What one connection may cost. */
export interface Http2Limits {
  /** Requests under way at once. */
  readonly streamsMax: number
  readonly headerFieldsMax: number
  /** Of one head, each field counted with 32 bytes more (RFC 9113, section 6.5.2). */
  readonly headerBytesMax: number
  /** What a request may send of its body before its listener has taken it. */
  readonly streamWindowBytes: number
  /** The same for all requests of the connection together. */
  readonly connectionWindowBytes: number
  /** Answers that wait for the client: for its windows, or for it to read. */
  readonly heldBytesMax: number
  /** Requests that the client gives up, or has us give up by a fault of its own. */
  readonly resetsPerSecondMax: number
  /** Frames that ask for nothing but attention. */
  readonly idleFramesPerSecondMax: number
}

/** What a connection tells. */
export interface Http2Events {
  /** A request's head has come. The listener hears of the rest; undefined: whoever heard has ended the stream. */
  request(stream: Http2Stream, head: Http2Request): Http2Listener | undefined
  /** Nothing comes or goes any more; without fault, both sides wanted it so or this one cut it off by `destroy`. */
  closed(connection: Http2ServerConnection, fault: Http2Fault | undefined): void
}

/** Why a connection was cut off: its client broke the protocol or a limit, or the network broke, or says nothing any more. */
export interface Http2Fault {
  readonly by: 'client' | 'network'
  readonly reason: string
}

/** While more waits to be read by the client, nothing more is read from it. */
const WAITING_BYTES_MAX = 1024 * 1024
/** Streams that ended last, of which frames may still be on their way. */
const ENDED_STREAMS_KEPT = 1024
const EMPTY = Buffer.alloc(0)
/** Whoever was told that it failed may take so long to read that. */
const FAREWELL_SECONDS = 2
/** The ping whose answer says that the client has read that the end is near. */
const LAST_PING = 1

/**
 * The server's side of one HTTP/2 connection (RFC 9113), from its preface on, over a socket that it reads and in the end closes. No push, no
 * priorities, no upgrade from HTTP/1.1; its header compression remembers nothing, so that blocks may be encoded once for all connections.
 * Whoever breaks the protocol is told so (GOAWAY, RST_STREAM) and never harms the other streams more than the protocol wants.
 */
export class Http2ServerConnection {
  readonly #socket: Duplex
  readonly #limits: Http2Limits
  readonly #events: Http2Events
  readonly #sender: Http2Sender
  readonly #frames: FrameReader
  readonly #decoder: HpackDecoder
  readonly #streams = new StreamTable<Http2Stream>()
  /** Those that ended last, and in #resetByUs whether the client could not know. */
  readonly #ended = new Uint32Array(ENDED_STREAMS_KEPT)
  readonly #resetByUs = new Uint8Array(ENDED_STREAMS_KEPT)
  #endedCount = 0
  #preface = CLIENT_PREFACE
  #hasSettings = false
  /** The client knows our limits. */
  #isAcknowledged = false
  #lastStreamId = 0
  /** Streams above are not answered any more: the client was told so. */
  #lastAnsweredId = INTEGER_31_MAX
  #block: { stream: number; flags: number; parts: Buffer[]; bytes: number } | undefined
  #receiveWindow: number
  /** Taken, and not told to the client yet. */
  #released = 0
  #resets = 0
  #idleFrames = 0
  #pingIsOut = false
  #drained: (() => void) | undefined
  #fault: Http2Fault | undefined
  /** It is over for a fault of the client's, which has yet to take that. */
  #isFailed = false
  #secondsFailed = 0
  #isClosed = false

  constructor(
    socket: Duplex,
    { limits, events, buffers }: { limits: Http2Limits; events: Http2Events; buffers: OutputBuffers },
  ) {
    this.#socket = socket
    this.#limits = limits
    this.#events = events
    this.#sender = new Http2Sender(new Output(socket, buffers), {
      heldBytesMax: limits.heldBytesMax,
      answered: (stream) => this.#closeIfOver(stream),
      overflowed: () => this.#fail(ErrorCode.enhanceYourCalm, 'the client does not take its answers'),
    })
    this.#receiveWindow = limits.connectionWindowBytes
    this.#frames = new FrameReader(FRAME_BYTES, (type, flags, id, payload) => this.#frame(type, flags, id, payload))
    this.#decoder = new HpackDecoder({ listBytesMax: limits.headerBytesMax })
    this.#sender.settings(limits)
    socket.on('data', (chunk: Buffer) => this.#read(chunk))
    socket.on('drain', () => this.#resume())
    socket.on('error', (error) => {
      this.#fault ??= { by: 'network', reason: error.message }
    })
    socket.on('close', () => this.#closed())
  }

  /** Those who answer what is under way. */
  listeners(): Http2Listener[] {
    return this.#streams.values().flatMap(({ listener }) => listener ?? [])
  }

  /** Forgets the counts of the second before. To be called once a second. */
  nextSecond(): void {
    this.#resets = 0
    this.#idleFrames = 0
    if (this.#isFailed) this.#secondsFailed += 1
    // Who was told what was wrong, and does not take it.
    if (this.#secondsFailed > FAREWELL_SECONDS) this.destroy()
  }

  /**
   * Asks whether the client lives; whoever has not answered the last such question by then is cut off. So is who never said a word, but not
   * who has only just connected: that one is asked as well.
   */
  checkLife(): void {
    if (!this.#pingIsOut) {
      this.#ping()
      return
    }
    this.#fault ??= { by: 'network', reason: 'the client does not answer' }
    this.destroy()
  }

  /**
   * Tells the client that this is the end; what it asks before it has heard that is answered still. Resolves when it has.
   */
  drain(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    if (this.#isClosed || !this.#hasSettings) {
      this.#sender.end()
      return Promise.resolve()
    }
    this.#sender.goAway(INTEGER_31_MAX, ErrorCode.none)
    this.#ping(LAST_PING)
    this.#drained = resolve
    return promise
  }

  /** Takes nothing more: what came until now is answered, then the connection closes. */
  finish(): void {
    if (this.#isClosed || this.#lastAnsweredId !== INTEGER_31_MAX) return
    this.#lastAnsweredId = this.#lastStreamId
    if (this.#hasSettings) this.#sender.goAway(this.#lastStreamId, ErrorCode.none)
    this.#endIfFinished()
  }

  /** Ends it at once, whatever is under way. */
  destroy(): void {
    this.#socket.destroy()
  }

  // ---------------------------------------------------------------- what comes

  #read(chunk: Buffer): void {
    // What still comes is taken and not looked at: closing over it would take our last words from the client (TCP resets).
    if (this.#isFailed) return
    const bytes = this.#preface.length > 0 ? this.#readPreface(chunk) : chunk
    if (!bytes) return
    this.#sender.hold()
    if (this.#frames.push(bytes) === 'too-large') this.#fail(ErrorCode.frameSize, 'a frame is too large')
    this.#sender.flush()
    if (this.#socket.writable && this.#sender.waitingBytes > WAITING_BYTES_MAX) this.#socket.pause()
  }

  #resume(): void {
    if (this.#socket.isPaused()) this.#socket.resume()
  }

  #readPreface(chunk: Buffer): Buffer | undefined {
    const compared = Math.min(chunk.length, this.#preface.length)
    if (!chunk.subarray(0, compared).equals(this.#preface.subarray(0, compared))) {
      this.#fail(ErrorCode.protocol, 'no HTTP/2')
      return undefined
    }
    this.#preface = this.#preface.subarray(compared)
    return chunk.subarray(compared)
  }

  /** False: the connection is at its end. */
  #frame(type: number, flags: number, id: number, payload: Buffer): boolean {
    if (this.#isFailed) return false
    if (!this.#hasSettings && type !== FrameType.settings) return this.#fail(ErrorCode.protocol, 'no settings first')
    const isContinued = this.#block !== undefined
    if (isContinued && (type !== FrameType.continuation || id !== this.#block?.stream)) {
      return this.#fail(ErrorCode.protocol, 'a header block is cut')
    }
    switch (type) {
      case FrameType.data:
        return this.#data(id, flags, payload)
      case FrameType.headers:
        return this.#headers(id, flags, payload)
      case FrameType.continuation:
        return this.#continuation(flags, payload)
      case FrameType.windowUpdate:
        return this.#windowUpdate(id, payload)
      case FrameType.resetStream:
        return this.#resetStream(id, payload)
      case FrameType.pushPromise:
        return this.#fail(ErrorCode.protocol, 'a client pushes')
      default:
        return this.#idle() && this.#idleFrame(type, flags, id, payload)
    }
  }

  #idle(): boolean {
    this.#idleFrames += 1
    if (this.#idleFrames <= this.#limits.idleFramesPerSecondMax) return true
    return this.#fail(ErrorCode.enhanceYourCalm, 'too many frames without use')
  }

  #idleFrame(type: number, flags: number, id: number, payload: Buffer): boolean {
    if (type === FrameType.settings) return this.#settings(id, flags, payload)
    if (type === FrameType.priority) return this.#priority(id, payload)
    if (type === FrameType.ping) return this.#pinged(id, flags, payload)
    if (type === FrameType.goAway) {
      if (id !== 0) return this.#fail(ErrorCode.protocol, 'GOAWAY on a stream')
      return payload.length >= 8 || this.#fail(ErrorCode.frameSize, 'GOAWAY is too short')
    }
    // Types that are not known mean nothing (section 5.5).
    return true
  }

  #data(id: number, flags: number, payload: Buffer): boolean {
    if (id === 0) return this.#fail(ErrorCode.protocol, 'data on no stream')
    const bytes = payload.length
    this.#receiveWindow -= bytes
    if (this.#receiveWindow < 0) return this.#fail(ErrorCode.flowControl, 'more data than the window has')
    const body = unpadded(flags, payload)
    if (!body) return this.#fail(ErrorCode.protocol, 'more padding than data')
    if (bytes === 0 && !(flags & FrameFlag.endStream) && !this.#idle()) return false
    const stream = this.#streams.get(id)
    if (!stream) {
      this.#takeBack(bytes)
      return this.#dataOfNone(id)
    }
    stream.receiveWindow -= bytes
    stream.heldBytes += bytes
    if (stream.isAsked) return this.#giveUp(stream, ErrorCode.streamClosed)
    if (stream.receiveWindow < 0) return this.#giveUp(stream, ErrorCode.flowControl)
    return this.#body(stream, body, (flags & FrameFlag.endStream) !== 0)
  }

  #dataOfNone(id: number): boolean {
    if (id > this.#lastStreamId) return this.#fail(ErrorCode.protocol, 'data on an idle stream')
    if (id > this.#lastAnsweredId || this.#wasEnded(id) === 'by-us') return true
    this.#sender.reset(id, ErrorCode.streamClosed)
    return this.#idle()
  }

  #body(stream: Http2Stream, body: Buffer, isLast: boolean): boolean {
    if (stream.missingBytes !== undefined) stream.missingBytes -= body.length
    const missingBytes = stream.missingBytes ?? 0
    if (missingBytes < 0 || (isLast && missingBytes > 0)) return this.#giveUp(stream, ErrorCode.protocol)
    stream.isAsked = isLast
    stream.listener?.data(body, isLast)
    return true
  }

  #headers(id: number, flags: number, payload: Buffer): boolean {
    if (id % 2 === 0) return this.#fail(ErrorCode.protocol, 'a stream that is not the client’s')
    const rest = unpadded(flags, payload)
    if (!rest) return this.#fail(ErrorCode.protocol, 'more padding than fields')
    const hasPriority = (flags & FrameFlag.priority) !== 0
    if (hasPriority && rest.length < 5) return this.#fail(ErrorCode.frameSize, 'HEADERS is too short')
    if (hasPriority && (rest.readUInt32BE(0) & INTEGER_31_MAX) === id) {
      return this.#fail(ErrorCode.protocol, 'a stream depends on itself')
    }
    const fragment = hasPriority ? rest.subarray(5) : rest
    if (flags & FrameFlag.endHeaders) return this.#fields(id, flags, fragment)
    this.#block = { stream: id, flags, parts: [Buffer.from(fragment)], bytes: fragment.length }
    return true
  }

  #continuation(flags: number, payload: Buffer): boolean {
    const block = this.#block
    if (!block) return this.#fail(ErrorCode.protocol, 'nothing to continue')
    block.parts.push(Buffer.from(payload))
    block.bytes += payload.length
    // Many empty parts cost as much as few full ones.
    if (block.bytes > this.#limits.headerBytesMax || block.parts.length > this.#limits.headerFieldsMax) {
      return this.#fail(ErrorCode.enhanceYourCalm, 'a header block without end')
    }
    if (!(flags & FrameFlag.endHeaders)) return true
    this.#block = undefined
    return this.#fields(block.stream, block.flags, Buffer.concat(block.parts))
  }

  #fields(id: number, flags: number, block: Buffer): boolean {
    const decoded = this.#decoder.decode(block)
    if (!decoded) return this.#fail(ErrorCode.compression, 'a header block cannot be read')
    const isLast = (flags & FrameFlag.endStream) !== 0
    const isTooMuch = decoded.isTooLarge || decoded.fields.length > this.#limits.headerFieldsMax
    const known = this.#streams.get(id)
    if (known) {
      if (known.isAsked) return this.#giveUp(known, ErrorCode.streamClosed)
      const mayFollow = isLast && !isTooMuch && areTrailers(decoded.fields)
      return mayFollow ? this.#body(known, EMPTY, true) : this.#giveUp(known, ErrorCode.protocol)
    }
    if (id <= this.#lastStreamId) return this.#fieldsOfNone(id)
    this.#lastStreamId = id
    if (id > this.#lastAnsweredId) return true
    if (this.#streams.size >= this.#limits.streamsMax) return this.#refuse(id, ErrorCode.refusedStream)
    if (isTooMuch) return this.#refuse(id, ErrorCode.enhanceYourCalm)
    const head = requestHead(decoded.fields)
    if (!head || (isLast && (head.contentLength ?? 0) > 0)) return this.#refuse(id, ErrorCode.protocol)
    this.#open(id, head, isLast)
    return true
  }

  #open(id: number, head: Http2Request, isLast: boolean): void {
    const stream = new Http2Stream(this, this.#sender, id, this.#limits.streamWindowBytes)
    stream.missingBytes = head.contentLength
    stream.isAsked = isLast
    this.#streams.add(stream)
    stream.listener = this.#events.request(stream, head)
    if (isLast) stream.listener?.data(EMPTY, true)
  }

  #fieldsOfNone(id: number): boolean {
    const ended = this.#wasEnded(id)
    if (ended === 'by-us') return true
    if (ended === 'by-both') return this.#fail(ErrorCode.streamClosed, 'fields on a stream that is over')
    return this.#fail(ErrorCode.protocol, 'streams out of order')
  }

  #refuse(id: number, code: number): boolean {
    this.#sender.reset(id, code)
    this.#remember(id, true)
    // Until it knows how many it may have at once, a client that has more is not at fault: it is only work.
    return code === ErrorCode.refusedStream && !this.#isAcknowledged ? this.#idle() : this.#countReset()
  }

  /** Ends a stream for a fault of the client's. */
  #giveUp(stream: Http2Stream, code: number): boolean {
    this.reset(stream, code)
    return this.#countReset()
  }

  /** Whoever ends the stream, the client or we for its fault: its place is free for the next, and what it has set going goes on. */
  #countReset(): boolean {
    this.#resets += 1
    if (this.#resets <= this.#limits.resetsPerSecondMax) return true
    return this.#fail(ErrorCode.enhanceYourCalm, 'too many requests that are given up')
  }

  #resetStream(id: number, payload: Buffer): boolean {
    if (id === 0 || id > this.#lastStreamId) return this.#fail(ErrorCode.protocol, 'a reset of no stream')
    if (payload.length !== 4) return this.#fail(ErrorCode.frameSize, 'RST_STREAM has four bytes')
    if (!this.#countReset()) return false
    const stream = this.#streams.get(id)
    if (stream) this.#close(stream, false)
    return true
  }

  #windowUpdate(id: number, payload: Buffer): boolean {
    if (payload.length !== 4) return this.#fail(ErrorCode.frameSize, 'WINDOW_UPDATE has four bytes')
    if (id > this.#lastStreamId) return this.#fail(ErrorCode.protocol, 'a window of an idle stream')
    const bytes = payload.readUInt32BE(0) & INTEGER_31_MAX
    if (id === 0) {
      if (bytes === 0) return this.#fail(ErrorCode.protocol, 'a window grows by nothing')
      this.#sender.window += bytes
      if (this.#sender.window > INTEGER_31_MAX) return this.#fail(ErrorCode.flowControl, 'a window beyond its limit')
      this.#sender.sendAllWaiting(this.#streams)
      return true
    }
    const stream = this.#streams.get(id)
    if (!stream) return true
    stream.sendWindow += bytes
    if (bytes === 0) return this.#giveUp(stream, ErrorCode.protocol)
    if (stream.sendWindow > INTEGER_31_MAX) return this.#giveUp(stream, ErrorCode.flowControl)
    this.#sender.sendWaiting(stream)
    return true
  }

  #settings(id: number, flags: number, payload: Buffer): boolean {
    if (id !== 0) return this.#fail(ErrorCode.protocol, 'settings on a stream')
    const isAck = (flags & FrameFlag.ack) !== 0
    if (payload.length % 6 !== 0 || (isAck && payload.length > 0)) {
      return this.#fail(ErrorCode.frameSize, 'settings have six bytes each')
    }
    if (isAck) {
      this.#isAcknowledged = true
      return true
    }
    this.#hasSettings = true
    for (let at = 0; at < payload.length; at += 6) {
      if (!this.#setting(payload.readUInt16BE(at), payload.readUInt32BE(at + 2))) return false
    }
    this.#sender.acknowledge()
    this.#sender.sendAllWaiting(this.#streams)
    return true
  }

  #setting(name: number, value: number): boolean {
    if (name === Setting.enablePush && value > 1) return this.#fail(ErrorCode.protocol, 'enable_push is 0 or 1')
    if (name === Setting.maxFrameSize) {
      if (value < FRAME_BYTES || value >= 2 ** 24)
        return this.#fail(ErrorCode.protocol, 'max_frame_size is beyond limits')
      this.#sender.frameBytesMax = value
    }
    if (name !== Setting.initialWindowSize) return true
    if (value > INTEGER_31_MAX) return this.#fail(ErrorCode.flowControl, 'initial_window_size is beyond its limit')
    const difference = value - this.#sender.initialWindow
    this.#sender.initialWindow = value
    for (const stream of this.#streams.values()) {
      stream.sendWindow += difference
      if (stream.sendWindow > INTEGER_31_MAX) return this.#fail(ErrorCode.flowControl, 'a window beyond its limit')
    }
    return true
  }

  #priority(id: number, payload: Buffer): boolean {
    if (id === 0) return this.#fail(ErrorCode.protocol, 'priority of no stream')
    if (payload.length !== 5) return this.#fail(ErrorCode.frameSize, 'PRIORITY has five bytes')
    const dependsOnItself = (payload.readUInt32BE(0) & INTEGER_31_MAX) === id
    return !dependsOnItself || this.#fail(ErrorCode.protocol, 'a stream depends on itself')
  }

  #pinged(id: number, flags: number, payload: Buffer): boolean {
    if (id !== 0) return this.#fail(ErrorCode.protocol, 'a ping on a stream')
    if (payload.length !== 8) return this.#fail(ErrorCode.frameSize, 'PING has eight bytes')
    if (flags & FrameFlag.ack) {
      this.#pingIsOut = false
      if (payload[0] === LAST_PING) this.#drained?.()
    } else this.#sender.pong(payload)
    return true
  }

  #ping(mark = 0): void {
    this.#pingIsOut = true
    this.#sender.ping(mark)
  }

  // ---------------------------------------------------------------- windows of what comes

  /** For Http2Stream. */
  release(stream: Http2Stream, bytes: number): void {
    if (this.#streams.get(stream.id) !== stream) return
    stream.heldBytes -= bytes
    this.#takeBack(bytes)
    if (stream.isAsked) return
    const due = this.#limits.streamWindowBytes - stream.receiveWindow - stream.heldBytes
    if (due < this.#limits.streamWindowBytes / 2) return
    stream.receiveWindow += due
    this.#sender.windowUpdate(stream.id, due)
  }

  #takeBack(bytes: number): void {
    this.#released += bytes
    if (this.#released < this.#limits.connectionWindowBytes / 2) return
    this.#receiveWindow += this.#released
    this.#sender.windowUpdate(0, this.#released)
    this.#released = 0
  }

  // ---------------------------------------------------------------- how it ends

  /** For Http2Stream. */
  reset(stream: Http2Stream, code: number): void {
    if (this.#streams.get(stream.id) !== stream) return
    this.#sender.reset(stream.id, code)
    this.#close(stream, true)
  }

  #closeIfOver(stream: Http2Stream): void {
    if (!stream.isAnswered || stream.waiting.length > 0) return
    if (stream.isAsked) this.#close(stream, false)
    // What else the client says is neither waited for nor read (RFC 9113, section 8.1).
    else this.reset(stream, ErrorCode.none)
  }

  #close(stream: Http2Stream, byUs: boolean): void {
    if (!this.#streams.delete(stream.id)) return
    this.#remember(stream.id, byUs)
    this.#sender.drop(stream)
    stream.isAsked = true
    stream.isAnswered = true
    this.#takeBack(stream.heldBytes)
    stream.listener?.closed()
    this.#endIfFinished()
  }

  #remember(id: number, byUs: boolean): void {
    const at = this.#endedCount++ % ENDED_STREAMS_KEPT
    this.#ended[at] = id
    this.#resetByUs[at] = byUs ? 1 : 0
  }

  #wasEnded(id: number): 'by-us' | 'by-both' | undefined {
    const at = this.#ended.indexOf(id)
    if (at < 0) return undefined
    return this.#resetByUs[at] ? 'by-us' : 'by-both'
  }

  #endIfFinished(): void {
    if (this.#lastAnsweredId === INTEGER_31_MAX || this.#streams.size > 0) return
    this.#sender.end()
    this.#resume()
  }

  /** Tells the client what was wrong, and ends the connection (section 5.4.1). Always false: nothing more is read. */
  #fail(code: number, reason: string): false {
    if (this.#isFailed) return false
    this.#isFailed = true
    this.#fault ??= { by: 'client', reason }
    this.#sender.goAway(this.#lastStreamId, code)
    this.#sender.end(() => this.#socket.destroy())
    this.#resume()
    return false
  }

  #closed(): void {
    this.#isClosed = true
    this.#drained?.()
    for (const stream of this.#streams.values()) this.#close(stream, false)
    this.#events.closed(this, this.#fault)
  }
}
