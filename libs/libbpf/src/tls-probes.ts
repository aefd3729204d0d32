import { type CallSource, type ProbeKind, probeCookie } from './call-layout.ts'
import type { ElfFile, ElfFunction } from './elf.ts'
import { cheapestPoint, firstCall, PROLOGUE_BYTES, type ProbePoint } from './prologue.ts'
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

/** Functions of one family of libraries, by what they do. */
interface Family {
  /** What a file without it cannot define: a look at its strings spares the symbols. */
  readonly telltale: string
  readonly functions: Readonly<Record<string, ProbeKind>>
  /** Without these nothing is worth a probe. */
  readonly required: readonly string[]
  /** Both of each pair hand over to one function with the arguments of the second, in the libraries of distributions. */
  readonly pairs: readonly (readonly [plain: string, extended: string])[]
}

/** Ending a connection takes what was read, as a handshake does. */
const FAMILIES: readonly Family[] = [
  {
    telltale: 'SSL_write',
    functions: {
      ...{ SSL_read: 'read', SSL_read_ex: 'readEx', SSL_write: 'write', SSL_write_ex: 'writeEx' },
      ...{ SSL_set_fd: 'setFd', SSL_do_handshake: 'handshake', SSL_shutdown: 'handshake', SSL_free: 'free' },
    },
    required: ['SSL_read', 'SSL_write'],
    pairs: [
      ['SSL_read', 'SSL_read_ex'],
      ['SSL_write', 'SSL_write_ex'],
    ],
  },
  {
    telltale: 'gnutls_record_send',
    functions: {
      ...{ gnutls_record_recv: 'read', gnutls_record_send: 'write', gnutls_transport_set_int2: 'setFd' },
      ...{ gnutls_handshake: 'handshake', gnutls_bye: 'handshake', gnutls_deinit: 'free' },
    },
    required: ['gnutls_record_recv', 'gnutls_record_send'],
    pairs: [],
  },
]
/** Only Node has it, and BoringSSL has no function with which OpenSSL says more of a read. */
const MARK_OF_NODE = 'napi_module_register'
const MARK_OF_OPENSSL = 'SSL_read_ex'

/** How many arguments a probe reads, and whether it also sits at the return. */
const SHAPES: Readonly<Record<ProbeKind, { argumentCount: number; returns: boolean }>> = {
  read: { argumentCount: 3, returns: true },
  readEx: { argumentCount: 4, returns: true },
  write: { argumentCount: 3, returns: true },
  writeEx: { argumentCount: 4, returns: true },
  setFd: { argumentCount: 2, returns: false },
  handshake: { argumentCount: 1, returns: false },
  free: { argumentCount: 1, returns: false },
}

interface Place {
  readonly name: string
  readonly kind: ProbeKind
  readonly offset: number
  readonly isCheap: boolean
}

/**
 * Where to probe a file that holds OpenSSL, GnuTLS, or something with the functions of one; undefined if it holds none. Where
 * `SSL_read` and `SSL_read_ex` call the same function first, with the arguments of the latter as they came, that function is
 * probed instead of both if it is cheaper.
 */
export function tlsProbes(elf: ElfFile): TlsProbes | undefined {
  for (const family of FAMILIES) {
    if (!elf.mentions(`\0${family.telltale}\0`)) continue
    const found = elf.functions(new Set([...Object.keys(family.functions), MARK_OF_NODE]))
    if (family.required.every((name) => found.has(name))) return probesOf(elf, family, found)
  }
  return undefined
}

function probesOf(elf: ElfFile, family: Family, found: ReadonlyMap<string, ElfFunction>): TlsProbes {
  const source = sourceOf(found)
  const places = new Map<string, Place>()
  for (const [name, kind] of Object.entries(family.functions)) {
    const fn = found.get(name)
    if (fn) places.set(name, placeOf(elf, { name, kind, offset: fn.offset, bytes: fn.bytes }))
  }
  for (const pair of family.pairs) {
    const shared = sharedPlace(elf, found, family, pair)
    if (!shared?.isCheap || pair.every((name) => places.get(name)?.isCheap !== false)) continue
    for (const name of pair) places.delete(name)
    places.set(shared.name, shared)
  }
  const all = [...places.values()]
  const toUprobe = ({ offset, kind }: Place): Uprobe => ({ offset, cookie: probeCookie(kind, source) })
  return {
    source,
    atEntry: all.map(toUprobe),
    atReturn: all.filter(({ kind }) => SHAPES[kind].returns).map(toUprobe),
    dear: all.filter(({ isCheap }) => !isCheap).map(({ name }) => name),
  }
}

function sourceOf(found: ReadonlyMap<string, ElfFunction>): CallSource {
  if (found.has('gnutls_record_send')) return 'gnutls'
  if (found.has(MARK_OF_NODE)) return 'node'
  return found.has(MARK_OF_OPENSSL) ? 'openssl' : 'boringssl'
}

function placeOf(elf: ElfFile, { name, kind, offset, bytes }: { name: string; kind: ProbeKind } & ElfFunction): Place {
  const point = pointOf(elf, offset, bytes, kind)
  return { name, kind, offset: offset + point.at, isCheap: point.isCheap }
}

function pointOf(elf: ElfFile, offset: number, bytes: number, kind: ProbeKind): ProbePoint {
  if (elf.machine !== 'x86-64') return { at: 0, isCheap: false }
  const { argumentCount, returns } = SHAPES[kind]
  const code = elf.read(offset, bytes === 0 ? PROLOGUE_BYTES : Math.min(bytes, PROLOGUE_BYTES))
  return cheapestPoint(code, { argumentCount, stackIntact: returns })
}

/** The function that both of a pair hand over to. */
function sharedPlace(
  elf: ElfFile,
  found: ReadonlyMap<string, ElfFunction>,
  { functions }: Family,
  [plain, extended]: Family['pairs'][number],
): Place | undefined {
  if (elf.machine !== 'x86-64') return undefined
  const [ofPlain, ofExtended] = [plain, extended].map((name) => {
    const fn = found.get(name)
    const call = fn && firstCall(elf.read(fn.offset, PROLOGUE_BYTES))
    return call && { offset: fn.offset + call.to, argumentsIntact: call.argumentsIntact }
  })
  const kind = functions[extended]
  if (!kind || !ofPlain || !ofExtended?.argumentsIntact || ofPlain.offset !== ofExtended.offset) return undefined
  return placeOf(elf, { name: `${plain} and ${extended}`, kind, offset: ofExtended.offset, bytes: 0 })
}
