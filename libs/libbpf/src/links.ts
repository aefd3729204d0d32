import { closeSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { detachLink } from './attach.ts'
import { CONFIG } from './layout.ts'
import { type BpfMap, openMap, uint32 } from './map.ts'
import { addressOf, check, isErrno, libbpf } from './native.ts'

const LINK_TYPES: Readonly<Record<number, HookLink['hook']>> = { 6: 'xdp', 11: 'tcx' }
const LINK_INFO_BYTES = 64
const PROGRAM_INFO_BYTES = 232
const MAP_IDS_AT = 56
const PROGRAM_MAPS_MAX = 64
const ONLY_KEY = Buffer.alloc(4)

/** A program on the hook of a network interface, by the number that the kernel gave the link. */
export interface HookLink {
  readonly id: number
  readonly hook: 'xdp' | 'tcx'
  /** In the namespace of the interface. 0: the interface is gone, or in another namespace. */
  readonly ifindex: number
  readonly programId: number
}

/** Every link of the whole system to a network interface, wherever it is pinned or held. */
function hookLinks(): HookLink[] {
  const found: HookLink[] = []
  const next = uint32(0)
  while (true) {
    const result = libbpf().bpf_link_get_next_id(next[0] ?? 0, next)
    if (isGone(result)) return found
    check('looking for links', result)
    const link = withLink(next[0] ?? 0, (fd) => readLink(fd))
    if (link) found.push(link)
  }
}

/** The maps that a program uses: name in the source, and number. Empty if it is gone. */
function mapsOfProgram(programId: number): { readonly name: string; readonly id: number }[] {
  const fd = libbpf().bpf_prog_get_fd_by_id(programId)
  if (isGone(fd)) return []
  check(`opening program ${programId}`, fd)
  try {
    const ids = Buffer.alloc(4 * PROGRAM_MAPS_MAX)
    const info = Buffer.alloc(PROGRAM_INFO_BYTES)
    info.writeUInt32LE(PROGRAM_MAPS_MAX, MAP_IDS_AT - 4)
    info.writeBigUInt64LE(addressOf(ids), MAP_IDS_AT)
    check('bpf_obj_get_info_by_fd', libbpf().bpf_obj_get_info_by_fd(fd, info, uint32(PROGRAM_INFO_BYTES)))
    const count = Math.min(info.readUInt32LE(MAP_IDS_AT - 4), PROGRAM_MAPS_MAX)
    return Array.from({ length: count }, (_, index) => ids.readUInt32LE(4 * index)).flatMap((id) => {
      const name = withMap(id, (map) => map.name)
      return name === undefined ? [] : [{ name, id }]
    })
  } finally {
    closeSync(fd)
  }
}

/**
 * Links of sensors, each with the network namespace that its map `config` names, as it does in every layout. A program that
 * does not read it is known by the map of flows that it shares with one that does.
 */
export function sensorLinks(): (HookLink & { readonly namespace: number })[] {
  const namespaces = new Map<number, number>()
  const links = hookLinks().map((link) => {
    const maps = mapsOfProgram(link.programId)
    const flows = maps.find(({ name }) => name === 'active_flows')?.id
    const config = maps.find(({ name }) => name === 'config')?.id
    const settings = config === undefined ? undefined : withMap(config, (map) => map.lookup(ONLY_KEY))
    if (flows !== undefined && settings) namespaces.set(flows, settings.readUInt32LE(CONFIG.netnsInum))
    return { link, flows }
  })
  return links.flatMap(({ link, flows }) => {
    const namespace = flows === undefined ? undefined : namespaces.get(flows)
    return namespace === undefined ? [] : [{ ...link, namespace }]
  })
}

/** Undefined if the program, and its maps with it, are gone meanwhile. */
function withMap<T>(id: number, read: (map: BpfMap) => T): T | undefined {
  try {
    using map = openMap(id)
    return read(map)
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return undefined
    throw error
  }
}

/**
 * Numbers of the links that are pinned somewhere below a directory of a bpffs, as any mount namespace shows it in which a
 * process lives: a container's bpffs is another than this one's.
 */
export function pinnedLinks(directory: string): Set<number> {
  const found = new Set<number>()
  const seen = new Set<number>()
  for (const pid of ['self', ...readdirSync('/proc').filter((name) => /^\d+$/.test(name))]) {
    const namespace = inumOf(`/proc/${pid}/ns/mnt`)
    if (namespace === undefined || seen.has(namespace)) continue
    seen.add(namespace)
    addPinned(join(`/proc/${pid}/root`, directory), found)
  }
  return found
}

function addPinned(path: string, found: Set<number>): void {
  const fd = libbpf().bpf_obj_get(path)
  if (fd >= 0) {
    const id = linkNumber(`/proc/self/fdinfo/${fd}`)
    closeSync(fd)
    if (id !== undefined) found.add(id)
    return
  }
  // A directory, or no pin: the kernel puts files of its own into a bpffs, which are no directories.
  for (const name of contentsOf(path)) addPinned(join(path, name), found)
}

/** Numbers of the links that a living process holds open, this process left out. It looks at every descriptor of the system. */
export function heldLinks(): Set<number> {
  const found = new Set<number>()
  for (const pid of readdirSync('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue
    for (const fd of contentsOf(`/proc/${pid}/fdinfo`)) {
      const id = linkNumber(`/proc/${pid}/fdinfo/${fd}`)
      if (id !== undefined) found.add(id)
    }
  }
  return found
}

/** Takes a link off its hook, whoever holds it or has it pinned. False: it was gone. */
export function detachLinkById(id: number): boolean {
  return withLink(id, (fd) => detachLink(`link ${id}`, fd) === undefined) ?? false
}

/** Pins a link, so that it is found again. */
export function pinLinkById(id: number, path: string): void {
  withLink(id, (fd) => check(`pinning ${path}`, libbpf().bpf_obj_pin(fd, path)))
}

function readLink(fd: number): HookLink | undefined {
  const info = Buffer.alloc(LINK_INFO_BYTES)
  check('bpf_obj_get_info_by_fd', libbpf().bpf_obj_get_info_by_fd(fd, info, uint32(LINK_INFO_BYTES)))
  const hook = LINK_TYPES[info.readUInt32LE(0)]
  if (!hook) return undefined
  return { id: info.readUInt32LE(4), hook, ifindex: info.readUInt32LE(16), programId: info.readUInt32LE(8) }
}

/** Undefined if the link is gone meanwhile. */
function withLink<T>(id: number, act: (fd: number) => T): T | undefined {
  const fd = libbpf().bpf_link_get_fd_by_id(id)
  if (isGone(fd)) return undefined
  check(`opening link ${id}`, fd)
  try {
    return act(fd)
  } finally {
    closeSync(fd)
  }
}

/** Or not there yet: EAGAIN is said of a link that another process is just making. */
function isGone(result: number): boolean {
  return result === -constants.errno.ENOENT || result === -constants.errno.EAGAIN
}

/** The process, or its descriptor, may be gone by now. */
function linkNumber(fdinfo: string): number | undefined {
  try {
    const [, id] = /^link_id:\s*(\d+)/m.exec(readFileSync(fdinfo, 'utf8')) ?? []
    return id === undefined ? undefined : Number(id)
  } catch {
    return undefined
  }
}

function contentsOf(directory: string): string[] {
  try {
    return readdirSync(directory)
  } catch {
    return []
  }
}

function inumOf(path: string): number | undefined {
  try {
    return statSync(path).ino
  } catch {
    return undefined
  }
}
