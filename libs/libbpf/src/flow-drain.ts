import {
  decodeFlow,
  decodeKernelDrop,
  FLOW,
  FLOW_KEY,
  type FlowRecord,
  KERNEL_DROP,
  type KernelDropRecord,
} from './flow-layout.ts'
import type { Batch, BpfMap } from './map.ts'

const PACKETS_BYTES = 8

/** Two generations of a map, turned over so that what is read is whole and nobody adds to it. */
export class Generations {
  readonly #active: BpfMap
  #written: BpfMap
  #idle: BpfMap

  /** `active` is the array that names the generation that is written; the other two are the generations, in any order. */
  constructor(active: BpfMap, one: BpfMap, other: BpfMap) {
    this.#active = active
    this.#written = one
    this.#idle = other
  }

  /**
   * Makes the kernel write to the other generation, waits until no program can still write to the old one (some 15 ms, in
   * another thread) and gives what that one held, in batches of at most 4,096 whose buffers are used again. Read it to its end
   * before the next call. Over maps that an earlier process left, the first call may read the idle generation and the second
   * the written one.
   */
  async *drain(): AsyncGenerator<Batch> {
    const fd = Buffer.alloc(4)
    fd.writeUInt32LE(this.#idle.fd)
    await this.#active.updateAsync(Buffer.alloc(4), fd)
    const whole = this.#written
    this.#written = this.#idle
    this.#idle = whole
    yield* whole.drain()
  }
}

/** The flows of the kernel, as Generations says. */
export class FlowDrain {
  readonly #generations: Generations

  /** `active` is the map `active_flows`. */
  constructor(active: BpfMap, flowsA: BpfMap, flowsB: BpfMap) {
    this.#generations = new Generations(active, flowsA, flowsB)
  }

  /** Keys and values as flow-layout.ts says, not decoded: for whoever reads a million. */
  batches(): AsyncGenerator<Batch> {
    return this.#generations.drain()
  }

  /** Each flow as an object. */
  async *drain(): AsyncGenerator<FlowRecord[]> {
    for await (const { count, keys, values } of this.batches()) {
      const flows: FlowRecord[] = []
      for (let index = 0; index < count; index++)
        flows.push(decodeFlow(keys, index * FLOW_KEY.bytes, values, index * FLOW.bytes))
      yield flows
    }
  }
}

/** What the kernel threw away since the last call; `drops` are the generations of `kernel_drops_a` and `_b`. */
export async function drainKernelDrops(drops: Generations): Promise<KernelDropRecord[]> {
  const records: KernelDropRecord[] = []
  for await (const { count, keys, values } of drops.drain()) {
    for (let index = 0; index < count; index++) {
      const packets = values.readBigUInt64LE(index * PACKETS_BYTES)
      records.push(decodeKernelDrop(keys, index * KERNEL_DROP.bytes, packets))
    }
  }
  return records
}
