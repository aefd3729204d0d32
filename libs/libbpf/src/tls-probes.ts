import { type CallSource, type ProbeKind, probeCookie } from './call-layout.ts'
import type { ElfFile, ElfFunction } from './elf.ts'
import { cheapestPoint, firstCall, PROLOGUE_BYTES } from './prologue.ts'
import type { Uprobe } from './uprobe.ts'

/** Where to probe a TLS library. */
export interface TlsProbes {
  readonly source: CallSource
  readonly atEntry: readonly Uprobe[]
  /** Each of the transfers again: their results are known when they return. */
  readonly atReturn: readonly Uprobe[]
  /** Functions whose probe costs some 20 times as much in a virtual machine, as nothing cheap was found in them. */
  readonly dear: readonly string[]
}

type TransferKind = Extract<ProbeKind, 'read' | 'readEx' | 'write' | 'writeEx'>

const TRANSFERS: Readonly<Record<string, TransferKind>> = {
  SSL_read: 'read',
  SSL_read_ex: 'readEx',
  SSL_write: 'write',
  SSL_write_ex: 'writeEx',
}
const OTHERS: Readonly<Record<string, ProbeKind>> = {
  SSL_set_fd: 'setFd',
  SSL_do_handshake: 'handshake',
  // Takes what was read as a handshake does.
  SSL_shutdown: 'handshake',
  SSL_free: 'free',
}
/** Both of each pair hand over to one function with the arguments of the second, in the libraries of distributions. */
const PAIRS = [
  ['SSL_read', 'SSL_read_ex'],
  ['SSL_write', 'SSL_write_ex'],
] as const
/** Only Node has it, and BoringSSL has no function with which OpenSSL says more of a read. */
const MARK_OF_NODE = 'napi_module_register'
const MARK_OF_OPENSSL = 'SSL_read_ex'
const NAMES = new Set([...Object.keys(TRANSFERS), ...Object.keys(OTHERS), MARK_OF_NODE])
/** What a file without it cannot define: a look at its strings spares the symbols. */
const TELLTALE = '\0SSL_write\0'

interface Place {
  readonly name: string
  readonly kind: ProbeKind
  readonly offset: number
  readonly isCheap: boolean
}

/**
 * Where to probe a file that holds OpenSSL, or something with its functions; undefined if it holds none. Where `SSL_read` and
 * `SSL_read_ex` call the same function first, with the arguments of the latter as they came, that function is probed instead of
 * both if it is cheaper.
 */
export function tlsProbes(elf: ElfFile): TlsProbes | undefined {
  if (!elf.mentions(TELLTALE)) return undefined
  const functions = elf.functions(NAMES)
  if (!functions.has('SSL_read') || !functions.has('SSL_write')) return undefined
  const source = sourceOf(functions)
  functions.delete(MARK_OF_NODE)
  const places = new Map<string, Place>()
  for (const [name, found] of functions) places.set(name, placeOf(elf, name, found))
  for (const pair of PAIRS) {
    const shared = sharedPlace(elf, functions, pair)
    if (!shared || pair.every((name) => places.get(name)?.isCheap !== false)) continue
    for (const name of pair) places.delete(name)
    places.set(shared.name, shared)
  }
  const all = [...places.values()]
  const toUprobe = ({ offset, kind }: Place): Uprobe => ({ offset, cookie: probeCookie(kind, source) })
  return {
    source,
    atEntry: all.map(toUprobe),
    atReturn: all.filter(isTransfer).map(toUprobe),
    dear: all.filter(({ isCheap }) => !isCheap).map(({ name }) => name),
  }
}

function sourceOf(functions: ReadonlyMap<string, ElfFunction>): CallSource {
  if (functions.has(MARK_OF_NODE)) return 'node'
  return functions.has(MARK_OF_OPENSSL) ? 'openssl' : 'boringssl'
}

function isTransfer({ kind }: Place): boolean {
  return Object.values<ProbeKind>(TRANSFERS).includes(kind)
}

function placeOf(elf: ElfFile, name: string, { offset, bytes }: ElfFunction): Place {
  const kind = TRANSFERS[name] ?? OTHERS[name]
  if (kind === undefined) throw new TypeError(`${name} is not probed`)
  const point = pointOf(elf, offset, bytes, kind in OTHER_KINDS)
  return { name, kind, offset: offset + point.at, isCheap: point.isCheap }
}

const OTHER_KINDS = { setFd: true, handshake: true, free: true }

/** At entry alone the stack pointer does not matter. */
function pointOf(elf: ElfFile, offset: number, bytes: number, entryOnly: boolean) {
  if (elf.machine !== 'x86-64') return { at: 0, isCheap: false }
  const code = elf.read(offset, bytes === 0 ? PROLOGUE_BYTES : Math.min(bytes, PROLOGUE_BYTES))
  return cheapestPoint(code, { stackIntact: !entryOnly })
}

/** The function that both of a pair hand over to, if a cheap probe fits there. */
function sharedPlace(
  elf: ElfFile,
  functions: ReadonlyMap<string, ElfFunction>,
  [plain, extended]: (typeof PAIRS)[number],
): Place | undefined {
  if (elf.machine !== 'x86-64') return undefined
  const [ofPlain, ofExtended] = [plain, extended].map((name) => {
    const found = functions.get(name)
    const call = found && firstCall(elf.read(found.offset, PROLOGUE_BYTES))
    return call && { offset: found.offset + call.to, argumentsIntact: call.argumentsIntact }
  })
  if (!ofPlain || !ofExtended?.argumentsIntact || ofPlain.offset !== ofExtended.offset) return undefined
  const point = pointOf(elf, ofExtended.offset, 0, false)
  const kind = TRANSFERS[extended]
  if (!point.isCheap || kind === undefined) return undefined
  return { name: `${plain} and ${extended}`, kind, offset: ofExtended.offset + point.at, isCheap: true }
}
