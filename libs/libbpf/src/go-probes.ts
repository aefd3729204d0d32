import { type GoProbeKind, goProbeCookie } from './call-layout.ts'
import type { ElfFile, ElfFunction } from './elf.ts'
import { GoFunctions, goVersion, isInTable } from './go-functions.ts'
import { cheapestGoPoint, goFrame, PROLOGUE_BYTES, type ProbePoint } from './prologue.ts'
import type { TlsProbes } from './tls-probes.ts'

/**
 * Where to probe a Go program. A probe at the return of a function, as for C, would break it: Go moves stacks. So what was
 * deciphered is read where `(*Conn).Read` copies it to its caller: at the call of `memmove`, or of `(*Reader).Read` in programs made
 * without inlining, always after the connection was put where the convention of Go has it, in the room that the caller keeps for the first
 * argument. What is written is read at the entry, before the answer to it can be there. Nothing has to be remembered in between, by thread or
 * by goroutine.
 */

const READ = 'crypto/tls.(*Conn).Read'
const WRITE = 'crypto/tls.(*Conn).Write'
const CLOSE = 'crypto/tls.(*Conn).Close'
const COPY = 'runtime.memmove'
const READER = 'bytes.(*Reader).Read'
/** By which a TCP connection is told from whatever else a TLS connection may run over. */
const TCP_READ = 'net.(*TCPConn).Read'
/** Of the function that is searched for the call: it has some 900. */
const READ_BYTES_MAX = 16_384
/** Between the return address and the room for the first argument. */
const RETURN_ADDRESS_BYTES = 8
const CALL_BYTES = 5
/** Of a function of arm64: where its room is taken and the arguments are put. */
const WORDS_MAX = 32

/** Why a Go program with TLS cannot be probed. */
export interface Unsupported {
  readonly unsupported: string
}

/** A call inside a function, and where the function's first argument is then. */
interface InnerCall {
  readonly at: number
  /** Bytes above the stack pointer. */
  readonly slot: number
}

/** Where to probe a Go program, or why it cannot be; undefined if it is none, or has no TLS. */
export function goProbes(elf: ElfFile): TlsProbes | Unsupported | undefined {
  const version = goVersion(elf)
  if (version === undefined || !elf.machine) return undefined
  const functions = GoFunctions.of(elf)
  const unknown = {
    unsupported: `made by ${version}, whose crypto/tls or table of functions has a form that is not known`,
  }
  if (!functions || !version.startsWith('go')) return isInTable(elf, WRITE) ? unknown : undefined
  if (!functions.mentions(READ) || !functions.mentions(WRITE)) return undefined
  const found = functions.find([READ, WRITE, CLOSE, COPY, READER, TCP_READ])
  const [read, write, close] = [READ, WRITE, CLOSE].map((name) => found.get(name))
  if (!read || !write || !close) return unknown
  const copies = [COPY, READER].map((name) => innerCall(elf, read, found.get(name)))
  const [copy] = copies.flatMap((call, index) => (call ? [{ ...call, kind: KINDS_OF_COPY[index] ?? 'goCopy' }] : []))
  const points = [write, close].map((fn) => entryPoint(elf, fn))
  const [writePoint, closePoint] = points
  if (!copy || !writePoint || !closePoint) return unknown
  const tcpRead = found.get(TCP_READ)
  const uprobe = (kind: GoProbeKind, offset: number, slot = 0) => {
    const toTcpRead = tcpRead === undefined ? 0 : tcpRead.offset - offset
    return { offset, cookie: goProbeCookie(kind, { slot, toTcpRead }) }
  }
  return {
    source: 'go',
    atEntry: [
      uprobe('goWrite', write.offset + writePoint.at),
      uprobe(copy.kind, read.offset + copy.at, copy.slot),
      uprobe('goClose', close.offset + closePoint.at),
    ],
    atReturn: [],
    dear: [...(writePoint.isCheap ? [] : [WRITE]), ...(closePoint.isCheap ? [] : [CLOSE])],
  }
}

const KINDS_OF_COPY: readonly GoProbeKind[] = ['goCopy', 'goReader']

/** The only call of one function in another, with the first argument where it is kept; undefined if that is not to be seen. */
function innerCall(elf: ElfFile, caller: ElfFunction, callee: ElfFunction | undefined): InnerCall | undefined {
  if (!callee) return undefined
  const code = elf.read(caller.offset, Math.min(caller.bytes, READ_BYTES_MAX))
  const to = callee.offset - caller.offset
  const isArm = elf.machine === 'arm64'
  const calls = isArm ? armCalls(code, to) : calls64(code, to)
  const slot = isArm ? armSlot(code) : slot64(code)
  const [at] = calls
  return calls.length === 1 && at !== undefined && slot !== undefined && slot.at <= at
    ? { at, slot: slot.slot }
    : undefined
}

function entryPoint(elf: ElfFile, fn: ElfFunction): ProbePoint | undefined {
  const code = elf.read(fn.offset, Math.min(fn.bytes, PROLOGUE_BYTES))
  return elf.machine === 'arm64' ? armEntry(code) : cheapestGoPoint(code)
}

/** Five bytes that hold this very distance at this very place are a call: there is one chance in four thousand million that they are not. */
function calls64(code: Buffer, to: number): number[] {
  const found: number[] = []
  for (let at = code.indexOf(0xe8); at >= 0 && at + CALL_BYTES <= code.length; at = code.indexOf(0xe8, at + 1))
    if (at + CALL_BYTES + code.readInt32LE(at + 1) === to) found.push(at)
  return found
}

/** `mov %rax, slot(%rsp)`, soon after the function took its room. */
function slot64(code: Buffer): InnerCall | undefined {
  const frame = goFrame(code)
  if (!frame) return undefined
  const slot = frame.bytes + RETURN_ADDRESS_BYTES
  const move =
    slot < 128 ? Buffer.from([0x48, 0x89, 0x44, 0x24, slot]) : Buffer.from([0x48, 0x89, 0x84, 0x24, 0, 0, 0, 0])
  if (slot >= 128) move.writeInt32LE(slot, 4)
  const at = code.subarray(0, frame.at + PROLOGUE_BYTES).indexOf(move, frame.at)
  return at < 0 ? undefined : { at, slot }
}

/** `bl`. */
function armCalls(code: Buffer, to: number): number[] {
  return words(code).flatMap((word, index) => {
    const distance = (word << 6) >> 4
    return word >>> 26 === 0x25 && index * 4 + distance === to ? [index * 4] : []
  })
}

/** `str x0, [sp, slot]`, after the function took its room by `str x30, [sp, -room]!` or `sub x20, sp, room`. */
function armSlot(code: Buffer): InnerCall | undefined {
  const first = words(code).slice(0, WORDS_MAX)
  const room = first.map(armRoom).find((bytes) => bytes !== undefined)
  if (room === undefined) return undefined
  const slot = room + RETURN_ADDRESS_BYTES
  const index = first.indexOf((0xf90003e0 | ((slot / 8) << 10)) >>> 0)
  return index < 0 ? undefined : { at: index * 4, slot }
}

function armRoom(word: number): number | undefined {
  if ((word & 0xffe00fff) >>> 0 === 0xf8000ffe) return -((word << 11) >> 23)
  return (word & 0xffc003ff) >>> 0 === 0xd10003f4 ? (word >>> 10) & 0xfff : undefined
}

/** Behind the branch for a stack that is too small. What is cheap there nobody measured. */
function armEntry(code: Buffer): ProbePoint | undefined {
  const branch = words(code).findIndex((word) => word >>> 24 === 0x54)
  return branch < 0 ? undefined : { at: (branch + 1) * 4, isCheap: false }
}

function words(code: Buffer): number[] {
  return Array.from({ length: Math.floor(code.length / 4) }, (_, index) => code.readUInt32LE(index * 4))
}
