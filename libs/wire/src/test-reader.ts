import { Duplex } from 'node:stream'
import { OutputBuffers } from './output.ts'

/** Buffers that say how many are taken and not given back. */
export class CountedBuffers extends OutputBuffers {
  held = 0
  most = 0

  override take(): Buffer {
    this.held += 1
    this.most = Math.max(this.most, this.held)
    return super.take()
  }

  override give(buffer: Buffer): void {
    this.held -= 1
    super.give(buffer)
  }
}

/** A server's end of a connection whose client says what is pushed, and reads nothing until it is told to. */
export class SlowReader extends Duplex {
  readonly got: Buffer[] = []
  #next: ((error?: Error) => void) | undefined
  #reads = false

  constructor() {
    super({ decodeStrings: false })
  }

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error) => void): void {
    this.got.push(Buffer.from(chunk))
    if (this.#reads) setImmediate(() => done())
    else this.#next = done
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    // As a socket does with what it did not get rid of.
    this.#next?.(new Error('closed'))
    done(error)
  }

  readOn(): void {
    this.#reads = true
    this.#next?.()
  }
}
