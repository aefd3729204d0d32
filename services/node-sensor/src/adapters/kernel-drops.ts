import type { KernelDrop } from '@tollward/contracts/sensor'
import { drainKernelDrops, dropReasons, Generations } from '@tollward/libbpf'
import { toKernelDrop } from '../domain/flow.ts'
import type { Kernel } from './kernel.ts'

const PROGRAM = 'watch_kernel_drops'

/** What the kernel throws away by its own reasons; nothing at all where it gives none (before Linux 5.17). */
export class KernelDrops {
  readonly #kernel: Kernel
  readonly #generations: Generations | undefined
  readonly #reasons: ReadonlyMap<number, string>

  constructor(kernel: Kernel) {
    this.#kernel = kernel
    const isLoaded = kernel.programs.some(({ name, fault }) => name === PROGRAM && fault === undefined)
    const [active, a, b] = [
      kernel.map('active_kernel_drops'),
      kernel.map('kernel_drops_a'),
      kernel.map('kernel_drops_b'),
    ]
    this.#generations = isLoaded ? new Generations(active, a, b) : undefined
    this.#reasons = isLoaded ? dropReasons() : new Map()
  }

  /** Since the last call, by reason and 5-tuple, as far as the kernel had room to keep them apart. */
  async read(): Promise<KernelDrop[]> {
    const records = this.#generations ? await drainKernelDrops(this.#generations) : []
    return records.map((record) => toKernelDrop(record, this.#reasons))
  }

  /** Packets by reason since the maps were made, each counted; reasons that never occurred are left out. */
  totals(): Record<string, number> {
    const map = this.#kernel.map('drop_totals')
    const last = map.maxEntries - 1
    const key = Buffer.alloc(4)
    const totals: Record<string, number> = {}
    for (let reason = 0; reason <= last; reason++) {
      key.writeUInt32LE(reason)
      const packets = Number(map.sumOfCpus(key))
      if (packets > 0) totals[reason === last ? 'OTHER' : (this.#reasons.get(reason) ?? String(reason))] = packets
    }
    return totals
  }
}
