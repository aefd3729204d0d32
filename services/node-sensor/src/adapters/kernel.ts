import { existsSync, mkdirSync } from 'node:fs'
import { basename, join } from 'node:path'
import { AppError } from '@tollward/errors'
import {
  type Anomaly,
  type BpfMap,
  type BpfObject,
  type BpfProgram,
  COUNTER,
  type CounterName,
  ExactBlocks,
  encodeConfig,
  type GuardConfig,
  guardAddresses,
  hasKernelTypes,
  hasSameLayout,
  isErrno,
  isPinMismatch,
  LAYOUT_VERSION,
  type LoadOptions,
  loadObject,
  type MapOptions,
  type Migration,
  migrateBlocks,
  migrateEntries,
  migrateExact,
  objectContents,
  openPinnedMap,
  pidNamespaceInum,
  type Rate,
  refusedProgram,
  removePins,
  tableSizes,
} from '@tollward/libbpf'
import type { Logger } from 'pino'
import { bringIn, networkNamespaceInum, type Pins } from './pins.ts'

/** Scratch space of a single packet: of no use to another process. */
const NOT_PINNED = ['packets'] as const
/** What a change of layout or size must not forget until the bus is read. */
const BLOCK_MAPS = ['block_cidr4', 'block_cidr6'] as const
/** Of exact addresses: a table of slots, and a hash of those that sensors left before there was one. */
const EXACT = 'block_exact'
/** Copied together or not at all: they refer to one another by number. */
const RULE_MAPS = ['rules', 'rule_match', 'rule_set'] as const
/** Mean the same only in maps of the same layout. */
const SAME_LAYOUT_MAPS = ['counters', 'rule_counts', 'connections'] as const

/** The first counters are verdicts, each arriving packet counts under one; see bpf/include/layout.h. */
const VERDICTS_END = COUNTER.expiredSeen
const ONLY_KEY = Buffer.alloc(4)

/** Samples of what is dropped or alerted, of each rule, block or reason: enough to name a source, too few to be a burden. */
const EVENTS: Rate = { packetsPerSecond: 10, burst: 20 }
/** Loads that a signal interrupted before it is an error; libbpf itself tries five times in each. */
const INTERRUPTIONS_MAX = 3
/** Kinds of programs that are verified against the kernel's own types. */
const NEEDS_KERNEL_TYPES = /^(tp_btf|iter|fentry|fexit|lsm)\//

export interface Program {
  readonly name: string
  readonly section: string
  readonly fault: string | undefined
}

interface Loaded {
  readonly object: BpfObject
  readonly programs: readonly Program[]
  /** Those that are pinned. */
  readonly maps: readonly string[]
}

/** What the kernel obeys of the service's configuration. */
export interface KernelSettings extends Pick<GuardConfig, 'mode' | 'managementPorts'> {
  readonly dropAnomalies: readonly Anomaly[]
  readonly synsPerSource?: Rate | undefined
  readonly synsPerPort?: Rate | undefined
  readonly synMode: 'drop' | 'audit'
  readonly unknownTransport: 'judged' | 'passed'
  readonly blockedAddressesMax: number
  readonly blockedRangesMax: number
  readonly flowsMax: number
}

/** The loaded programs and their pinned maps. Disposing it changes nothing in the kernel. */
export class Kernel implements Disposable {
  /** Whether the maps, with the blocks in them, are those that an earlier sensor left. */
  readonly adopted: boolean
  readonly object: BpfObject
  /** Every program of the object, with the section that says where it hangs, and why it was left out if it was. */
  readonly programs: readonly Program[]
  /** Names of the pinned maps. */
  readonly maps: ReadonlySet<string>

  constructor({ object, programs, maps }: Loaded, adopted: boolean) {
    this.maps = new Set(maps)
    this.object = object
    this.programs = programs
    this.adopted = adopted
  }

  map(name: string): BpfMap {
    return this.object.map(name)
  }

  has(map: string): boolean {
    return this.maps.has(map)
  }

  /** Throws `failed_precondition` with the reason if it was left out. */
  program(name: string): BpfProgram {
    const fault = this.programs.find((program) => program.name === name)?.fault
    if (fault !== undefined) throw new AppError('failed_precondition', fault)
    return this.object.program(name)
  }

  /** Makes the map of guarded addresses hold exactly these; returns how many it had no room for. */
  guard(addresses: readonly Uint8Array[]): number {
    return guardAddresses({ map: (name) => this.map(name) }, addresses)
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
 * Loads the programs, and adopts the pinned maps where their shapes match. Where they don't, or where a sensor of another
 * layout was, the programs are loaded and verified with new maps, which get the blocks that were there; only then these
 * take the place of the others. The links follow: see `takeLinks`. So no packet of a blocked source passes in between.
 */
export function loadKernel(path: string, pins: Pins, settings: KernelSettings, log: Logger): Kernel {
  const kernel = adoptMaps(path, pins, settings, log) ?? replaceMaps(path, pins, settings, log)
  kernel.map('config').update(ONLY_KEY, encodeConfig(guardConfig(settings)))
  return kernel
}

function guardConfig(settings: KernelSettings): GuardConfig {
  const { mode, managementPorts, dropAnomalies, synsPerSource, synsPerPort, synMode, unknownTransport } = settings
  return {
    ...{ mode, managementPorts, dropAnomalies, synMode, unknownTransport },
    ...(synsPerSource && { synsOfSource: synsPerSource }),
    ...(synsPerPort && { synsToPort: synsPerPort }),
    netnsInum: networkNamespaceInum(),
    pidnsInum: pidNamespaceInum(),
    events: EVENTS,
  }
}

/**
 * Removes what sensors of other layouts or sizes left, once nothing on a hook needs it any more. Returns how many flows nobody
 * will read: what was counted since their last drain.
 */
export function removeOutdated({ outdated }: Pins, log: Logger): number {
  let flows = 0
  for (const directory of outdated()) {
    for (const path of ['flows_a', 'flows_b'].map((name) => join(directory, name)).filter((file) => existsSync(file))) {
      using map = openPinnedMap(path)
      for (const { count } of map.entries()) flows += count
    }
    log.info({ directory, removed: removePins(directory) }, 'what a sensor of another version left was removed')
  }
  return flows
}

/** Undefined if a pinned map has another shape, or if there is none yet but those of another sensor. */
function adoptMaps(path: string, pins: Pins, settings: KernelSettings, log: Logger): Kernel | undefined {
  const { directory, outdated } = pins
  const adopted = existsSync(join(directory, 'config'))
  if (!adopted && outdated().length > 0) return undefined
  try {
    return new Kernel(load(path, { maps: mapSizes(settings), pins: { directory, except: NOT_PINNED } }, log), adopted)
  } catch (error) {
    if (isPinMismatch(error)) return undefined
    throw error
  }
}

function replaceMaps(path: string, pins: Pins, settings: KernelSettings, log: Logger): Kernel {
  const { directory, staging, outdated } = pins
  const loaded = load(path, { maps: mapSizes(settings) }, log)
  const kernel = new Kernel(loaded, false)
  for (const old of [...outdated(), directory]) {
    const migrated = migrate(old, kernel, log)
    if (Object.keys(migrated).length > 0)
      log.warn({ from: old, migrated }, 'pinned maps have another layout or other sizes and are replaced')
  }
  mkdirSync(staging)
  for (const name of loaded.maps) kernel.map(name).pin(join(staging, name))
  bringIn(pins)
  return kernel
}

/** Copies what must stay from one set of pinned maps. What cannot be copied returns with the bus. */
function migrate(directory: string, kernel: Kernel, log: Logger): Record<string, Migration> {
  using opened = new DisposableStack()
  const old = (name: string) => opened.use(openPinnedMap(join(directory, name)))
  const migrated: Record<string, Migration> = {}
  const copied = (name: string, how: () => Migration) => {
    try {
      migrated[name] = how()
      if (migrated[name].left > 0) log.error({ map: name, ...migrated[name] }, 'entries found no room in the new map')
    } catch (error) {
      log.error({ err: error, map: name, directory }, 'a pinned map could not be copied; it is filled from the bus')
    }
  }
  const copy = (names: readonly string[], how: (from: BpfMap, to: BpfMap) => Migration) => {
    const pairs = names
      .filter((name) => existsSync(join(directory, name)) && kernel.has(name))
      .map((name) => ({ name, from: old(name), to: kernel.map(name) }))
    if (how === migrateEntries && !pairs.every(({ from, to }) => hasSameLayout(from, to))) return
    for (const { name, from, to } of pairs) copied(name, () => how(from, to))
  }
  if (existsSync(join(directory, EXACT)))
    copied(EXACT, () => {
      const to = new ExactBlocks({ map: (name) => kernel.map(name) })
      to.takeOver()
      return migrateExact({ map: old }, to)
    })
  copy(BLOCK_MAPS, migrateBlocks)
  copy(RULE_MAPS, migrateEntries)
  if (basename(directory).includes(`v${LAYOUT_VERSION}_`)) copy(SAME_LAYOUT_MAPS, migrateEntries)
  return migrated
}

/** Leaves out, one by one, what this kernel cannot run, instead of running nothing. */
function load(path: string, options: LoadOptions, log: Logger): Loaded {
  const contents = objectContents(path)
  const faults = new Map<string, string>()
  if (!hasKernelTypes())
    for (const { name, section } of contents.programs)
      if (NEEDS_KERNEL_TYPES.test(section)) faults.set(name, 'this kernel publishes no types (BTF)')
  for (let interrupted = 0; ; ) {
    try {
      const object = loadObject(path, { ...options, withoutPrograms: [...faults.keys()] })
      const programs = contents.programs.map(({ name, section }) => ({ name, section, fault: faults.get(name) }))
      return {
        object,
        programs,
        maps: contents.maps.filter((name) => !(NOT_PINNED as readonly string[]).includes(name)),
      }
    } catch (error) {
      // A signal to this process ends the verifier's work; that says nothing of the program.
      if (isErrno(error, 'EAGAIN', 'EINTR') && interrupted++ < INTERRUPTIONS_MAX) continue
      const refused = refusedProgram(error)
      if (!refused || faults.has(refused.name) || faults.size + 1 === contents.programs.length) throw error
      faults.set(refused.name, refused.why)
      log.error(
        { program: refused.name, why: refused.why },
        'this kernel refuses a program; the sensor goes on without',
      )
    }
  }
}

function mapSizes({ blockedAddressesMax, blockedRangesMax, flowsMax }: KernelSettings): Record<string, MapOptions> {
  return {
    ...tableSizes(blockedAddressesMax),
    block_cidr4: { maxEntries: blockedRangesMax },
    block_cidr6: { maxEntries: blockedRangesMax },
    flows_a: { maxEntries: flowsMax },
    flows_b: { maxEntries: flowsMax },
  }
}

function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
}
