import {
  type BpfObject,
  CALL_COUNTER,
  type CallCounterName,
  type Chunk,
  decodeChunk,
  RingReader,
} from '@tollward/libbpf'

/** What the kernel captured of calls, in the order in which it happened on each connection. One reader. */
export class CallRing implements Disposable {
  readonly #object: BpfObject
  readonly #ring: RingReader

  /** `object` is calls.bpf.o. */
  constructor(object: BpfObject) {
    this.#object = object
    this.#ring = new RingReader(object.map('calls'))
  }

  /** Hands over what is there, at most `limit` chunks; returns how many. A chunk's bytes are gone when the callback returns. */
  read(onChunk: (chunk: Chunk) => void, limit?: number): number {
    return this.#ring.read((data, at) => onChunk(decodeChunk(data, at)), limit)
  }

  /** A counter over all CPUs since the programs were loaded. */
  count(name: CallCounterName): bigint {
    const key = Buffer.alloc(4)
    key.writeUInt32LE(CALL_COUNTER[name])
    return this.#object.map('call_counters').sumOfCpus(key)
  }

  [Symbol.dispose](): void {
    this.#ring.close()
  }
}
