import { existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import {
  type BpfMap,
  type BpfObject,
  COUNTER,
  type CounterName,
  encodeConfig,
  type GuardMode,
  isPinMismatch,
  loadObject,
  type MapOptions,
  removePins,
} from '@tollward/libbpf'
import type { Logger } from 'pino'
import { networkNamespaceInum, type Pins } from './pins.ts'

/** All but the scratch space of a single packet. */
const PINNED_MAPS = [
  'config',
  'guarded',
  'block_exact',
  'block_cidr4',
  'block_cidr6',
  'counters',
  'first_hits',
  'flows_a',
  'flows_b',
  'active_flows',
  'spilled_flows',
  'connections',
  'kernel_drops_a',
  'kernel_drops_b',
  'active_kernel_drops',
  'drop_totals',
] as const

/** The first counters are verdicts, each arriving packet counts under one; see bpf/include/layout.h. */
const VERDICTS_END = COUNTER.expiredSeen
/** Marks flows whose handshake this kernel completed; it needs the kernel's own types. */
export const HANDSHAKE_PROGRAM = 'watch_handshake'
const ONLY_KEY = Buffer.alloc(4)
/** Value of the map `guarded`: that there is an entry says all. */
const GUARDED = Buffer.from([1, 0, 0, 0])

export interface KernelSettings {
  readonly mode: GuardMode
  readonly managementPorts: readonly number[]
  readonly blockedAddressesMax: number
  readonly blockedRangesMax: number
  readonly flowsMax: number
}

/** Whether the kernel publishes its types, without which HANDSHAKE_PROGRAM cannot be loaded. */
export function hasKernelTypes(): boolean {
  return existsSync('/sys/kernel/btf/vmlinux')
}

/** The loaded programs and their pinned maps. Disposing it changes nothing in the kernel. */
export class Kernel implements Disposable {
  /** Whether the maps, with the blocks in them, are those that an earlier sensor left. */
  readonly adopted: boolean
  readonly object: BpfObject

  constructor(object: BpfObject, adopted: boolean) {
    this.object = object
    this.adopted = adopted
  }

  map(name: (typeof PINNED_MAPS)[number]): BpfMap {
    return this.object.map(name)
  }

  /** Makes the map of guarded addresses hold exactly these; returns how many it had no room for. */
  guard(addresses: readonly Uint8Array[]): number {
    const map = this.map('guarded')
    const wanted = new Set(addresses.map((address) => Buffer.from(address).toString('hex')))
    for (const key of map.keys()) if (!wanted.has(key.toString('hex'))) map.delete(key)
    const room = addresses.slice(0, map.maxEntries)
    for (const address of room) map.update(address, GUARDED)
    return addresses.length - room.length
  }

  /** A counter over all CPUs, since the maps were made. */
  count(name: CounterName): bigint {
    const key = Buffer.alloc(4)
    key.writeUInt32LE(COUNTER[name])
    return this.map('counters').sumOfCpus(key)
  }

  verdicts(): Record<string, number> {
    return this.#counts((index) => index < VERDICTS_END)
  }

  events(): Record<string, number> {
    return this.#counts((index) => index >= VERDICTS_END)
  }

  [Symbol.dispose](): void {
    this.object.close()
  }

  #counts(wanted: (index: number) => boolean): Record<string, number> {
    const names = (Object.entries(COUNTER) as [CounterName, number][]).filter(([, index]) => wanted(index))
    return Object.fromEntries(names.map(([name]) => [snake(name), Number(this.count(name))]))
  }
}

/**
 * Loads the programs, and adopts the pinned maps where their shapes match. Where they don't, the programs are loaded and
 * verified first, and only then what was there is removed: until the blocks are read from the bus, nothing is dropped then.
 */
export function loadKernel(path: string, pins: Pins, settings: KernelSettings, log: Logger): Kernel {
  const kernel = adoptMaps(path, pins, settings) ?? replaceMaps(path, pins, settings, log)
  for (const directory of pins.outdated) {
    log.warn({ directory, removed: removePins(directory) }, 'what a sensor of another version left was removed')
  }
  const { mode, managementPorts } = settings
  kernel.map('config').update(ONLY_KEY, encodeConfig({ mode, managementPorts, netnsInum: networkNamespaceInum() }))
  return kernel
}

/** Undefined if a pinned map has another shape. */
function adoptMaps(path: string, { directory }: Pins, settings: KernelSettings): Kernel | undefined {
  const sizes = mapSizes(settings)
  const maps = PINNED_MAPS.map((name) => [name, { ...sizes[name], pinPath: join(directory, name) }] as const)
  const adopted = PINNED_MAPS.every((name) => existsSync(join(directory, name)))
  try {
    return new Kernel(loadObject(path, { maps: Object.fromEntries(maps), withoutPrograms: withoutHooks() }), adopted)
  } catch (error) {
    if (isPinMismatch(error)) return undefined
    throw error
  }
}

function replaceMaps(path: string, { directory }: Pins, settings: KernelSettings, log: Logger): Kernel {
  log.warn({ directory }, 'pinned maps have other sizes and are replaced; their blocks return with the bus')
  const kernel = new Kernel(loadObject(path, { maps: mapSizes(settings), withoutPrograms: withoutHooks() }), false)
  removePins(directory)
  mkdirSync(directory)
  for (const name of PINNED_MAPS) kernel.map(name).pin(join(directory, name))
  return kernel
}

function mapSizes({ blockedAddressesMax, blockedRangesMax, flowsMax }: KernelSettings): Record<string, MapOptions> {
  return {
    block_exact: { maxEntries: blockedAddressesMax },
    block_cidr4: { maxEntries: blockedRangesMax },
    block_cidr6: { maxEntries: blockedRangesMax },
    flows_a: { maxEntries: flowsMax },
    flows_b: { maxEntries: flowsMax },
  }
}

function withoutHooks(): string[] {
  return hasKernelTypes() ? [] : [HANDSHAKE_PROGRAM]
}

function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
}
