import { closeSync, fstatSync, openSync, readSync } from 'node:fs'

const ELF_MAGIC = '7f454c46'
const CLASS_64 = 2
const LITTLE_ENDIAN = 1
const MACHINES: Readonly<Record<number, 'x86-64' | 'arm64'>> = { 62: 'x86-64', 183: 'arm64' }
const HEADER_BYTES = 64
const SECTION_BYTES = 64
const SEGMENT_BYTES = 56
const SYMBOL_BYTES = 24
const SECTIONS_MAX = 65_536
const SEGMENTS_MAX = 1024
/** Of one section that is read at once: the symbols of the largest programs are a tenth of it. */
const SECTION_READ_MAX = 64 * 1024 * 1024
/** Of the section that names the others. */
const SECTION_NAMES_MAX = 1024 * 1024
const SHT_NOBITS = 8
const SHT_SYMTAB = 2
const SHT_DYNSYM = 11
const PT_LOAD = 1
const EXECUTABLE = 1
const STT_FUNC = 2
const NAME_BYTES_MAX = 256

/** A function in a file. */
export interface ElfFunction {
  /** Bytes from the beginning of the file: what a probe is placed by. */
  readonly offset: number
  /** 0: the file does not say. */
  readonly bytes: number
}

interface Section {
  /** Where its name begins in the section of names. */
  readonly nameAt: number
  readonly type: number
  readonly address: number
  readonly offset: number
  readonly bytes: number
  readonly link: number
}

/** Where a section lies in the file, and where it is to lie in memory. */
export interface ElfSection {
  readonly address: number
  readonly offset: number
  readonly bytes: number
}

interface Segment {
  readonly flags: number
  readonly offset: number
  readonly address: number
  readonly bytes: number
}

/** An executable or a library of 64 bits, little endian. Read where it is needed, as some are hundreds of megabytes. */
export class ElfFile implements Disposable {
  readonly machine: 'x86-64' | 'arm64' | undefined
  readonly #fd: number
  readonly #sections: readonly Section[]
  readonly #names: Section | undefined
  readonly #segments: readonly Segment[]

  /** Throws a TypeError for what is no such file, and what the file system throws. */
  constructor(path: string) {
    this.#fd = openSync(path, 'r')
    try {
      const header = this.read(0, HEADER_BYTES)
      const isElf = header.length === HEADER_BYTES && header.toString('hex', 0, 4) === ELF_MAGIC
      if (!isElf || header[4] !== CLASS_64 || header[5] !== LITTLE_ENDIAN)
        throw new TypeError(`${path} is no ELF of 64 bits`)
      this.machine = MACHINES[header.readUInt16LE(18)]
      this.#segments = this.#table(
        header.readBigUInt64LE(32),
        header.readUInt16LE(56),
        SEGMENTS_MAX,
        SEGMENT_BYTES,
      ).map(segmentOf)
      this.#sections = this.#table(
        header.readBigUInt64LE(40),
        header.readUInt16LE(60),
        SECTIONS_MAX,
        SECTION_BYTES,
      ).map(sectionOf)
      this.#names = this.#sections[header.readUInt16LE(62)]
    } catch (error) {
      closeSync(this.#fd)
      throw error
    }
  }

  /**
   * The same for what are one file underneath: overlays give it a device of their own in each container, but its number, its size and
   * its times.
   */
  get origin(): string {
    const { ino, size, mtimeNs, birthtimeNs } = fstatSync(this.#fd, { bigint: true })
    return [ino, size, mtimeNs, birthtimeNs].join(' ')
  }

  /** Bytes of the file; fewer at its end. */
  read(offset: number, length: number): Buffer {
    const bytes = Buffer.alloc(length)
    return bytes.subarray(0, readSync(this.#fd, bytes, 0, length, offset))
  }

  /** The functions of these names that the file defines: as the loader sees them, else as its symbol table does. */
  functions(names: ReadonlySet<string>): Map<string, ElfFunction> {
    const found = new Map<string, ElfFunction>()
    for (const type of [SHT_DYNSYM, SHT_SYMTAB]) {
      if (found.size === names.size) break
      for (const section of this.#sections) if (section.type === type) this.#addFunctions(section, names, found)
    }
    return found
  }

  /** The first section of this name. */
  section(name: string): ElfSection | undefined {
    if (!this.#names || this.#names.bytes > SECTION_NAMES_MAX) return undefined
    const text = this.read(this.#names.offset, this.#names.bytes)
    return this.#sections.find(({ nameAt, type }) => type !== SHT_NOBITS && stringAt(text, nameAt) === name)
  }

  /** The bytes of a section; undefined if it is larger than is read at once. */
  contents({ offset, bytes }: ElfSection): Buffer | undefined {
    return bytes <= SECTION_READ_MAX ? this.read(offset, bytes) : undefined
  }

  /** Whether the names of its symbols hold the text. */
  mentions(text: string): boolean {
    const tables = this.#sections.filter(({ type }) => type === SHT_DYNSYM || type === SHT_SYMTAB)
    return tables.some(({ link }) => {
      const strings = this.#sections[link]
      return (
        strings !== undefined &&
        strings.bytes <= SECTION_READ_MAX &&
        this.read(strings.offset, strings.bytes).includes(text)
      )
    })
  }

  /** Where the loader takes the code at this address from. */
  fileOffset(address: number): number | undefined {
    const segment = this.#segments.find(
      ({ flags, address: from, bytes }) => flags & EXECUTABLE && address >= from && address < from + bytes,
    )
    return segment && segment.offset + address - segment.address
  }

  close(): void {
    closeSync(this.#fd)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #addFunctions(section: Section, names: ReadonlySet<string>, found: Map<string, ElfFunction>): void {
    const strings = this.#sections[section.link]
    if (!strings || section.bytes > SECTION_READ_MAX || strings.bytes > SECTION_READ_MAX) return
    const symbols = this.read(section.offset, section.bytes)
    const text = this.read(strings.offset, strings.bytes)
    const initials = new Set([...names].map((name) => name.charCodeAt(0)))
    for (let at = 0; at + SYMBOL_BYTES <= symbols.length; at += SYMBOL_BYTES) {
      const nameAt = symbols.readUInt32LE(at)
      if ((symbols.readUInt8(at + 4) & 15) !== STT_FUNC || !initials.has(text[nameAt] ?? 0)) continue
      const address = Number(symbols.readBigUInt64LE(at + 8))
      // Undefined here: another library has it.
      if (symbols.readUInt16LE(at + 6) === 0 || address === 0) continue
      const name = stringAt(text, nameAt)
      if (!names.has(name) || found.has(name)) continue
      const offset = this.fileOffset(address)
      if (offset !== undefined) found.set(name, { offset, bytes: Number(symbols.readBigUInt64LE(at + 16)) })
    }
  }

  #table(offset: bigint, count: number, most: number, bytes: number): Buffer[] {
    const entries = this.read(Number(offset), Math.min(count, most) * bytes)
    return Array.from({ length: Math.floor(entries.length / bytes) }, (_, index) =>
      entries.subarray(index * bytes, (index + 1) * bytes),
    )
  }
}

function sectionOf(entry: Buffer): Section {
  return {
    nameAt: entry.readUInt32LE(0),
    type: entry.readUInt32LE(4),
    address: Number(entry.readBigUInt64LE(16)),
    offset: Number(entry.readBigUInt64LE(24)),
    bytes: Number(entry.readBigUInt64LE(32)),
    link: entry.readUInt32LE(40),
  }
}

/** One that is not loaded has no bytes here. */
function segmentOf(entry: Buffer): Segment {
  return {
    flags: entry.readUInt32LE(4),
    offset: Number(entry.readBigUInt64LE(8)),
    address: Number(entry.readBigUInt64LE(16)),
    bytes: entry.readUInt32LE(0) === PT_LOAD ? Number(entry.readBigUInt64LE(32)) : 0,
  }
}

function stringAt(text: Buffer, at: number): string {
  const end = text.indexOf(0, at)
  return text.toString('latin1', at, Math.min(end < 0 ? text.length : end, at + NAME_BYTES_MAX))
}
