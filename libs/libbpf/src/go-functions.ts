import type { ElfFile, ElfFunction, ElfSection } from './elf.ts'

/**
 * The functions of a Go program by the table that its own runtime needs, which stripping leaves: `pcHeader`, `moduledata` and
 * `_func` of runtime/symtab.go, as they are since Go 1.18. The table may lie: nothing is read outside of it, and whoever probes by
 * it must know what the code at the place looks like.
 */

/** Go 1.18, and since 1.20. */
const MAGICS = [0xfffffff0, 0xfffffff1]
const HEADER_WORDS = 12
const HEADER_BYTES = 8 * (1 + HEADER_WORDS)
const POINTER_BYTES = 8
/** Words of the header behind its first eight bytes. */
const HEADER = { functions: 0, textStart: 2, names: 3, compilationUnits: 4, functionTable: 7 } as const
/** In moduledata, since Go 1.26, which leaves it out of the header. */
const MODULE_TEXT = 176
/** In _func: the offset of its name. */
const FUNCTION_NAME = 4
const ENTRY_BYTES = 8
/** Where the linker of C puts the table of a program that may be loaded anywhere, among other things. */
const SHARED_SECTION = '.data.rel.ro'
const TABLE_SECTIONS = ['.gopclntab', '.data.rel.ro.gopclntab']
/** Of what only looks like a table there. */
const CANDIDATES_MAX = 16

const BUILD_MAGIC = Buffer.from('\xff Go buildinf:', 'latin1')
const BUILD_FLAGS = 15
const BUILD_STRINGS_INLINE = 2
const BUILD_STRINGS = 32
const VERSION_BYTES_MAX = 127

/** What is read of a file. */
export type GoFile = Pick<ElfFile, 'machine' | 'section' | 'contents' | 'read' | 'fileOffset'>

/** Which Go made a program: as it says (`go1.26.1`), or that it is a Go older than 1.18. Undefined if it was not Go. */
export function goVersion(elf: GoFile): string | undefined {
  const section = elf.section('.go.buildinfo')
  const info = section && elf.read(section.offset, Math.min(section.bytes, BUILD_STRINGS + 1 + VERSION_BYTES_MAX))
  if (!info || info.length <= BUILD_STRINGS || !info.subarray(0, BUILD_MAGIC.length).equals(BUILD_MAGIC))
    return undefined
  if (!((info[BUILD_FLAGS] ?? 0) & BUILD_STRINGS_INLINE)) return 'a Go older than 1.18'
  const length = Math.min(info[BUILD_STRINGS] ?? 0, VERSION_BYTES_MAX)
  return info.toString('latin1', BUILD_STRINGS + 1, BUILD_STRINGS + 1 + length)
}

/** Whether a table, also of a form that is not known, holds this name. */
export function isInTable(elf: GoFile, name: string): boolean {
  const tables = TABLE_SECTIONS.map((section) => elf.section(section))
  return tables.some((section) => section && elf.contents(section)?.includes(`\0${name}\0`, 0, 'latin1'))
}

/** Where the functions of a Go program are. */
export class GoFunctions {
  readonly #elf: GoFile
  readonly #table: Buffer
  readonly #header: readonly number[]

  private constructor(elf: GoFile, table: Buffer, header: readonly number[]) {
    this.#elf = elf
    this.#table = table
    this.#header = header
  }

  /** Of a file; undefined if it has no such table, or one that is larger than is read at once. */
  static of(elf: GoFile): GoFunctions | undefined {
    for (const name of TABLE_SECTIONS) {
      const section = elf.section(name)
      const table = section && elf.contents(section)
      const header = table && headerOf(table)
      if (header) return new GoFunctions(elf, table, header)
    }
    const shared = elf.section(SHARED_SECTION)
    return shared && GoFunctions.#within(elf, shared)
  }

  static #within(elf: GoFile, section: ElfSection): GoFunctions | undefined {
    const bytes = elf.contents(section)
    if (!bytes) return undefined
    let tried = 0
    for (const magic of MAGICS) {
      const start = Buffer.alloc(POINTER_BYTES)
      start.writeUInt32LE(magic)
      start[6] = elf.machine === 'arm64' ? 4 : 1
      start[7] = POINTER_BYTES
      for (let at = bytes.indexOf(start); at >= 0 && tried < CANDIDATES_MAX; at = bytes.indexOf(start, at + 1)) {
        tried += 1
        const table = bytes.subarray(at)
        const header = at % POINTER_BYTES === 0 ? headerOf(table) : undefined
        if (header) return new GoFunctions(elf, table, header)
      }
    }
    return undefined
  }

  /** Whether a function of this name is in the table, or was meant to be. */
  mentions(name: string): boolean {
    return this.#nameAt(name) !== undefined
  }

  /** The functions of these names: where the loader takes them from, and how long they are. */
  find(names: readonly string[]): Map<string, ElfFunction> {
    const text = this.#textStart()
    const wanted = new Map(names.map((name) => [this.#nameAt(name), name]))
    const found = new Map<string, ElfFunction>()
    const at = this.#header[HEADER.functionTable] ?? 0
    const functions = this.#table.subarray(at)
    const count = Math.min(this.#header[HEADER.functions] ?? 0, Math.floor(functions.length / ENTRY_BYTES) - 1)
    for (let index = 0; index < count && found.size < names.length; index++) {
      const entry = functions.readUInt32LE(index * ENTRY_BYTES)
      const nameAt = functions.readUInt32LE(index * ENTRY_BYTES + 4) + FUNCTION_NAME
      if (nameAt + 4 > functions.length) continue
      const name = wanted.get(functions.readUInt32LE(nameAt))
      const bytes = functions.readUInt32LE((index + 1) * ENTRY_BYTES) - entry
      const offset = name === undefined ? undefined : this.#elf.fileOffset(text + entry)
      if (name !== undefined && offset !== undefined && bytes > 0 && !found.has(name))
        found.set(name, { offset, bytes })
    }
    return found
  }

  #nameAt(name: string): number | undefined {
    const from = this.#header[HEADER.names] ?? 0
    const names = this.#table.subarray(from, this.#header[HEADER.compilationUnits])
    const at = names.indexOf(`\0${name}\0`, 0, 'latin1')
    return at < 0 ? undefined : at + 1
  }

  /** The address that the entries count from. */
  #textStart(): number {
    const inHeader = this.#header[HEADER.textStart] ?? 0
    if (inHeader > 0) return inHeader
    const module = this.#elf.section('.go.module')
    const word = module && this.#elf.read(module.offset + MODULE_TEXT, POINTER_BYTES)
    const inModule = word?.length === POINTER_BYTES ? Number(word.readBigUInt64LE()) : 0
    return inModule > 0 ? inModule : (this.#elf.section('.text')?.address ?? 0)
  }
}

/** The words of a table's header; undefined if it is none, or its parts are not inside of it. */
function headerOf(table: Buffer): number[] | undefined {
  if (table.length < HEADER_BYTES || !MAGICS.includes(table.readUInt32LE(0)) || table[7] !== POINTER_BYTES)
    return undefined
  const words = Array.from({ length: HEADER_WORDS - 4 }, (_, index) => Number(table.readBigUInt64LE(8 + index * 8)))
  const [names = 0, units = 0, functions = 0] = [HEADER.names, HEADER.compilationUnits, HEADER.functionTable].map(
    (index) => words[index],
  )
  return names < units && units <= functions && functions < table.length ? words : undefined
}
