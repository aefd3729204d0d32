import { decodeFlow, FLOW, FLOW_KEY, type FlowRecord } from './flow-layout.ts'
import type { BpfMap } from './map.ts'

/** Turns over the two generations of flows, so that what is read is whole and nobody adds to it. */
export class FlowDrain {
  readonly #active: BpfMap
  #written: BpfMap
  #idle: BpfMap

  /** `active` is the map `active_flows`; the other two are the generations, in any order. */
  constructor(active: BpfMap, flowsA: BpfMap, flowsB: BpfMap) {
    this.#active = active
    this.#written = flowsA
    this.#idle = flowsB
  }

  /**
   * Makes the kernel write to the other generation, waits until no program can still write to the old one (some 15 ms, in
   * another thread) and gives what that one held, in batches of at most 4,096. Read it to its end before the next call. Over
   * maps that an earlier process left, the first call may read the idle generation and the second the written one.
   */
  async *drain(): AsyncGenerator<FlowRecord[]> {
    const fd = Buffer.alloc(4)
    fd.writeUInt32LE(this.#idle.fd)
    await this.#active.updateAsync(Buffer.alloc(4), fd)
    const whole = this.#written
    this.#written = this.#idle
    this.#idle = whole
    for (const { count, keys, values } of whole.drain()) {
      const flows: FlowRecord[] = []
      for (let index = 0; index < count; index++)
        flows.push(decodeFlow(keys, index * FLOW_KEY.bytes, values, index * FLOW.bytes))
      yield flows
    }
  }
}
