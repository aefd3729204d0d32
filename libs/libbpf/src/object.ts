import { join } from 'node:path'
import { BpfMap } from './map.ts'
import { addressOf, BpfError, check, checkPointer, isErrno, libbpf, type Pointer } from './native.ts'

const TEST_RUN_OPTS_BYTES = 80
/** What a program under test may make of a packet: XDP refuses more than a page anyway. */
const TEST_OUTPUT_BYTES = 4096

export interface MapOptions {
  /** Instead of the default in the object. */
  readonly maxEntries?: number
  /** A path in a bpffs. A map that is pinned there is taken over if it has the same shape, else loading fails. */
  readonly pinPath?: string
}

export interface LoadOptions {
  readonly maps?: Readonly<Record<string, MapOptions>>
  /** Pins every map of the object there by its name, or takes over the one that is pinned, but for those in `except`. */
  readonly pins?: { readonly directory: string; readonly except: readonly string[] }
  /** Programs to leave out, such as those whose hook this kernel lacks. */
  readonly withoutPrograms?: readonly string[]
  /** Attach types of <linux/bpf.h> for programs that are to be attached otherwise than their section says. */
  readonly attachTypes?: Readonly<Record<string, number>>
}

export interface TestRun {
  /** What the program returned, such as XDP_PASS = 2. */
  readonly result: number
  /** The packet as the program left it. */
  readonly output: Buffer
  /** Average of the repetitions. */
  readonly durationNs: number
}

/** What an object file holds, by the names in its source. */
export interface ObjectContents {
  /** Programs with the sections that say where they hang, such as `tp_btf/kfree_skb`. */
  readonly programs: readonly { readonly name: string; readonly section: string }[]
  readonly maps: readonly string[]
}

/** A program in the kernel, by an open descriptor. */
export interface BpfProgram {
  readonly name: string
  readonly fd: number
}

/** An object file in the kernel: its programs verified, its maps made or taken over. Closing it leaves what is pinned or attached. */
export class BpfObject implements Disposable {
  readonly #object: Pointer
  #closed = false

  /** Use `loadObject`. */
  constructor(object: Pointer) {
    this.#object = object
  }

  /** A map by its name in the source; valid until the object is closed. */
  map(name: string): BpfMap {
    return new BpfMap(libbpf().bpf_map__fd(mapOf(this.#open(), name)), false)
  }

  /** A program by its name in the source; valid until the object is closed. */
  program(name: string): BpfProgram {
    const found = programOf(this.#open(), name)
    return { name, fd: check(`the program ${name} was left out`, libbpf().bpf_program__fd(found)) }
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    libbpf().bpf_object__close(this.#object)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #open(): Pointer {
    if (this.#closed) throw new TypeError('the object was closed')
    return this.#object
  }
}

/**
 * Opens an object file, applies the options and loads it into the kernel. Throws BpfError; its log holds what libbpf and the
 * verifier said. Maps that were newly pinned before a failure stay pinned: `removePins` takes them away.
 */
export function loadObject(
  path: string,
  { maps = {}, pins, withoutPrograms = [], attachTypes = {} }: LoadOptions = {},
): BpfObject {
  const object = checkPointer(`opening ${path}`, libbpf().bpf_object__open_file(path, null))
  try {
    if (pins) {
      const names = contentsOf(object).maps.filter((name) => !pins.except.includes(name))
      for (const name of names) setMap(mapOf(object, name), name, { pinPath: join(pins.directory, name) })
    }
    for (const [name, options] of Object.entries(maps)) setMap(mapOf(object, name), name, options)
    for (const name of withoutPrograms) libbpf().bpf_program__set_autoload(programOf(object, name), 0)
    for (const [name, type] of Object.entries(attachTypes))
      check(`attach type of ${name}`, libbpf().bpf_program__set_expected_attach_type(programOf(object, name), type))
    check(`loading ${path}`, libbpf().bpf_object__load(object))
    return new BpfObject(object)
  } catch (error) {
    libbpf().bpf_object__close(object)
    throw error
  }
}

/** What an object file holds; nothing of it is loaded. */
export function objectContents(path: string): ObjectContents {
  const object = checkPointer(`opening ${path}`, libbpf().bpf_object__open_file(path, null))
  try {
    return contentsOf(object)
  } finally {
    libbpf().bpf_object__close(object)
  }
}

/**
 * The program for which loading failed, and what libbpf or the verifier had against it; undefined if the failure was of
 * something else.
 */
export function refusedProgram(error: unknown): { readonly name: string; readonly why: string } | undefined {
  if (!(error instanceof BpfError)) return undefined
  const lines = error.log.split('\n')
  const name = lines.flatMap((line) => /prog '([^']+)': .*fail/.exec(line)?.[1] ?? []).at(-1)
  if (name === undefined) return undefined
  const missing = lines.find((line) => line.includes(`prog '${name}': failed to find`))
  // The verifier ends with its reason, and then what it did.
  const verdict = lines[lines.findLastIndex((line) => /^processed \d+ insns/.test(line)) - 1]
  const why = missing?.replace(/^.*?: /, '') ?? verdict
  return { name, why: why ? `${error.errno}: ${why}` : error.message }
}

/** Whether loading failed because a pinned map has another shape than the object's. */
export function isPinMismatch(error: unknown): boolean {
  return isErrno(error, 'EINVAL') && /parameter mismatch/.test(error.log)
}

/** Runs a program on a packet or context without attaching it (BPF_PROG_TEST_RUN). At least 14 bytes, an Ethernet header. */
export function testRun(program: BpfProgram, packet: Uint8Array, repeat = 1): TestRun {
  const { opts, result } = testRunOf(packet, repeat)
  check(`running ${program.name}`, libbpf().bpf_prog_test_run_opts(program.fd, opts))
  return result()
}

/** As `testRun`, in a thread of its own, while this one goes on. */
export async function testRunAside(program: BpfProgram, packet: Uint8Array, repeat: number): Promise<TestRun> {
  const { opts, result } = testRunOf(packet, repeat)
  const { promise, resolve, reject } = Promise.withResolvers<number>()
  libbpf().bpf_prog_test_run_opts.async(program.fd, opts, (error, code) => (error ? reject(error) : resolve(code)))
  check(`running ${program.name}`, await promise)
  return result()
}

function testRunOf(packet: Uint8Array, repeat: number): { opts: Buffer; result: () => TestRun } {
  const output = Buffer.alloc(TEST_OUTPUT_BYTES)
  const opts = Buffer.alloc(TEST_RUN_OPTS_BYTES)
  opts.writeBigUInt64LE(BigInt(TEST_RUN_OPTS_BYTES), 0)
  opts.writeBigUInt64LE(addressOf(packet), 8)
  opts.writeBigUInt64LE(addressOf(output), 16)
  opts.writeUInt32LE(packet.length, 24)
  opts.writeUInt32LE(output.length, 28)
  opts.writeInt32LE(repeat, 60)
  const result = () => ({
    result: opts.readUInt32LE(56),
    output: output.subarray(0, opts.readUInt32LE(28)),
    durationNs: opts.readUInt32LE(64),
  })
  return { opts, result }
}

function contentsOf(object: Pointer): ObjectContents {
  const { bpf_program__name, bpf_program__section_name, bpf_map__name } = libbpf()
  const programs = listOf((last) => libbpf().bpf_object__next_program(object, last))
  const maps = listOf((last) => libbpf().bpf_object__next_map(object, last))
  return {
    programs: programs.map((program) => ({
      name: bpf_program__name(program),
      section: bpf_program__section_name(program),
    })),
    maps: maps.map((map) => bpf_map__name(map)),
  }
}

function listOf(next: (last: Pointer | null) => Pointer | null): Pointer[] {
  const found: Pointer[] = []
  for (let at = next(null); at; at = next(at)) found.push(at)
  return found
}

function setMap(map: Pointer, name: string, { maxEntries, pinPath }: MapOptions): void {
  if (maxEntries !== undefined) check(`size of ${name}`, libbpf().bpf_map__set_max_entries(map, maxEntries))
  if (pinPath !== undefined) check(`pin path of ${name}`, libbpf().bpf_map__set_pin_path(map, pinPath))
}

function mapOf(object: Pointer, name: string): Pointer {
  return checkPointer(`map ${name}`, libbpf().bpf_object__find_map_by_name(object, name))
}

function programOf(object: Pointer, name: string): Pointer {
  return checkPointer(`program ${name}`, libbpf().bpf_object__find_program_by_name(object, name))
}
