import type { Duplex } from 'node:stream'

const BUFFER_BYTES = 64 * 1024
/** Kept for the next; what a burst needed beyond is left to the collector. */
const BUFFERS_KEPT_MAX = 64

/** Buffers that many connections write from, one after the other. */
export class OutputBuffers {
  readonly #free: Buffer[] = []

  take(): Buffer {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(BUFFER_BYTES)
  }

  give(buffer: Buffer): void {
    if (buffer.length === BUFFER_BYTES && this.#free.length < BUFFERS_KEPT_MAX) this.#free.push(buffer)
  }
}

/**
 * Gathers what goes out on one connection, so that many small frames are one write. While a write waits for the other side, what comes is
 * gathered further: a connection holds at most one buffer that is not full beside the one that is on its way.
 */
export class Output {
  readonly #socket: Duplex
  readonly #buffers: OutputBuffers
  #buffer: Buffer | undefined
  #length = 0
  #writes = 0

  constructor(socket: Duplex, buffers: OutputBuffers) {
    this.#socket = socket
    this.#buffers = buffers
  }

  /** Bytes that wait for the other side to read. */
  get waitingBytes(): number {
    return this.#socket.writableLength + this.#length
  }

  /** Calls `write` with a buffer and the place in it from which on there is room for `bytes` bytes, all of which it has to write. */
  add(bytes: number, write: (to: Buffer, at: number) => void): void {
    if (this.#buffer && this.#length + bytes > this.#buffer.length) this.#write()
    this.#buffer ??= bytes > BUFFER_BYTES ? Buffer.allocUnsafeSlow(bytes) : this.#buffers.take()
    write(this.#buffer, this.#length)
    this.#length += bytes
  }

  /** Writes what was gathered, at once or after what is on its way. */
  flush(): void {
    if (this.#writes === 0) this.#write()
  }

  /** Writes what was gathered, and ends the connection behind it. */
  end(ended: () => void = () => {}): void {
    this.#write()
    this.#socket.end(ended)
  }

  #write(): void {
    const buffer = this.#buffer
    if (!buffer) return
    const length = this.#length
    this.#buffer = undefined
    this.#length = 0
    if (!this.#socket.writable) {
      this.#buffers.give(buffer)
      return
    }
    this.#writes += 1
    this.#socket.write(buffer.subarray(0, length), () => {
      this.#writes -= 1
      this.#buffers.give(buffer)
      this.flush()
    })
  }
}
