/**
 * Where in a function a probe costs least. The kernel emulates a few instructions (push of a register, nop, jumps and calls);
 * any other it executes out of line, step by step, which in a virtual machine takes some 20 times as long. So a probe is
 * put on the first emulated instruction that is always reached, and before which the function did not touch what the probe
 * reads. x86-64 only.
 */

/** Where a probe may go. */
export interface ProbePoint {
  /** Bytes from the beginning of the function. */
  readonly at: number
  /** Whether the kernel emulates the instruction there. */
  readonly isCheap: boolean
}

/** What the first call in a function calls, and whether it passes the first four arguments on as they came. */
export interface PassedOn {
  /** Bytes from the beginning of the function to the beginning of the called one. */
  readonly to: number
  readonly argumentsIntact: boolean
}

/** Where the room of a function of Go begins, and how much it is. */
export interface GoFrame {
  /** Bytes from the beginning of the function: the instructions behind are executed once a call. */
  readonly at: number
  /** Between the stack pointer in the function and the return address. */
  readonly bytes: number
}

/** No prologue is longer; what was not decided by then is not. */
export const PROLOGUE_BYTES = 96

/** Numbers of registers in x86-64 instructions. */
const STACK_POINTER = 4
/** rax, rbx, rcx: the first three arguments in Go. */
const GO_ARGUMENTS = [0, 3, 1]
/** rdi, rsi, rdx, rcx: the first four arguments. */
const ARGUMENTS = [7, 6, 2, 1]

type Kind = 'push' | 'nop' | 'call' | 'jump' | 'branch' | 'plain'

interface Instruction {
  readonly length: number
  readonly kind: Kind
  /** The register that it writes, if any. */
  readonly writes: number | undefined
  /** Of calls and jumps: bytes from the beginning of the code. */
  readonly target: number | undefined
}

/** What must be where the caller left it when a probe runs. */
export interface Intact {
  /** How many of the first arguments. */
  readonly argumentCount: number
  /** The stack pointer, which a probe at the return finds the return address by. */
  readonly stackIntact: boolean
}

/**
 * The cheapest point of a function's first bytes where what the probe needs is where the caller left it. Without one, the
 * beginning: it works everywhere, and costs more.
 */
export function cheapestPoint(code: Uint8Array, { argumentCount, stackIntact }: Intact): ProbePoint {
  const needed = ARGUMENTS.slice(0, argumentCount)
  for (const { at, instruction } of instructions(code)) {
    const { kind, writes } = instruction
    if (kind !== 'plain') return { at, isCheap: true }
    if (writes !== undefined && (needed.includes(writes) || (stackIntact && writes === STACK_POINTER))) break
  }
  return { at: 0, isCheap: false }
}

/** The first call of a function, whether or not a branch may skip it; undefined if there is none so early. */
export function firstCall(code: Uint8Array): PassedOn | undefined {
  let argumentsIntact = true
  for (const { instruction } of instructions(code)) {
    const { kind, writes, target } = instruction
    if (kind === 'call' || kind === 'jump') return target === undefined ? undefined : { to: target, argumentsIntact }
    if (kind === 'branch' || (writes !== undefined && ARGUMENTS.includes(writes))) argumentsIntact = false
  }
  return undefined
}

/**
 * The cheapest point of a function of Go that is passed once a call, with the first three arguments where they came. Not before its
 * branch for a stack that is too small: from there it begins anew. Undefined for what does not begin so.
 */
export function cheapestGoPoint(code: Uint8Array): ProbePoint | undefined {
  let first: ProbePoint | undefined
  for (const { at, instruction } of instructions(code)) {
    const { kind, writes } = instruction
    if (first && kind !== 'plain') return { at, isCheap: true }
    if (!first && kind === 'branch') first = { at: at + instruction.length, isCheap: false }
    else if ((!first && kind !== 'plain') || (writes !== undefined && GO_ARGUMENTS.includes(writes))) break
  }
  return first
}

/** What a function of Go takes of the stack, by its first instructions; undefined for what does not begin so. */
export function goFrame(code: Uint8Array): GoFrame | undefined {
  const view = new DataView(code.buffer, code.byteOffset, code.byteLength)
  let pushed = 0
  for (const { at, instruction } of instructions(code)) {
    const end = at + instruction.length
    if (instruction.kind === 'push') pushed += 8
    // The assembler adds -128 instead of subtracting 128: it is shorter.
    const [rex, opcode, modrm] = code.subarray(at, at + 3)
    if (rex !== 0x48 || (modrm !== 0xec && modrm !== 0xc4)) continue
    const isShort = opcode === 0x83
    if (!isShort && opcode !== 0x81) continue
    const immediate = isShort ? view.getInt8(end - 1) : view.getInt32(end - 4, true)
    const bytes = pushed + (modrm === 0xec ? immediate : -immediate)
    return bytes > 0 ? { at: end, bytes } : undefined
  }
  return undefined
}

/** Up to the first instruction that is not known. */
function* instructions(code: Uint8Array): Generator<{ at: number; instruction: Instruction }> {
  let at = 0
  while (at < Math.min(code.length, PROLOGUE_BYTES)) {
    const instruction = decode(code, at)
    if (!instruction || at + instruction.length > code.length) return
    yield { at, instruction }
    at += instruction.length
  }
}

/** Opcodes of one byte with a ModRM byte: whether they write their register or their memory operand, and bytes that follow. */
const WITH_MODRM: Readonly<Record<number, { writes: 'register' | 'operand' | 'none'; immediate: number }>> = {
  3: { writes: 'register', immediate: 0 }, // add
  11: { writes: 'register', immediate: 0 }, // or
  35: { writes: 'register', immediate: 0 }, // and
  41: { writes: 'operand', immediate: 0 }, // sub
  43: { writes: 'register', immediate: 0 }, // sub
  49: { writes: 'operand', immediate: 0 }, // xor
  51: { writes: 'register', immediate: 0 }, // xor
  57: { writes: 'none', immediate: 0 }, // cmp
  59: { writes: 'none', immediate: 0 }, // cmp
  99: { writes: 'register', immediate: 0 }, // movsxd
  128: { writes: 'operand', immediate: 1 }, // add, or, and, sub, xor, cmp on bytes
  129: { writes: 'operand', immediate: 4 },
  131: { writes: 'operand', immediate: 1 },
  132: { writes: 'none', immediate: 0 }, // test
  133: { writes: 'none', immediate: 0 },
  136: { writes: 'operand', immediate: 0 }, // mov
  137: { writes: 'operand', immediate: 0 },
  138: { writes: 'register', immediate: 0 },
  139: { writes: 'register', immediate: 0 },
  141: { writes: 'register', immediate: 0 }, // lea
  198: { writes: 'operand', immediate: 1 }, // mov
  199: { writes: 'operand', immediate: 4 },
}

/** Opcodes of two bytes that move to and from vector registers: the latter are not followed, and no argument is there. */
const VECTOR_MOVES = [0x10, 0x11, 0x28, 0x29, 0x6f, 0x7f, 0xd6, 0x57, 0xef]

const ENDBR64 = [0xf3, 0x0f, 0x1e, 0xfa]
const SEGMENT_FS = 0x64
const OPERAND_SIZE = 0x66

function decode(code: Uint8Array, start: number): Instruction | undefined {
  if (ENDBR64.every((byte, index) => code[start + index] === byte)) return plain(4)
  let at = start
  while (code[at] === SEGMENT_FS || code[at] === OPERAND_SIZE) at += 1
  const prefixed = at > start
  const rex = ((code[at] ?? 0) & 0xf0) === 0x40 ? (code[at++] ?? 0) : 0
  const opcode = code[at++]
  if (opcode === undefined) return undefined
  const done = at - start
  if (opcode === 0x90) return { ...plain(done), kind: 'nop' }
  if (opcode >= 0x50 && opcode <= 0x57)
    return prefixed ? undefined : { ...plain(done), kind: 'push', writes: STACK_POINTER }
  if (opcode >= 0xb8 && opcode <= 0xbf && !prefixed)
    return plain(done + (rex & 8 ? 8 : 4), (opcode & 7) | ((rex & 1) << 3))
  if (opcode === 0x0f) return decodeLong(code, start, at, rex)
  if (!prefixed && rex === 0) {
    const jump = decodeJump(code, start, at, opcode)
    if (jump) return jump
  }
  const form = WITH_MODRM[opcode]
  if (!form) return undefined
  // With an operand size of two bytes the longer immediates are shorter.
  if (prefixed && form.immediate === 4 && code[start] === OPERAND_SIZE) return undefined
  // Of the group of opcodes that ends with cmp, cmp writes nothing.
  const isCompare = opcode >= 128 && opcode <= 131 && (((code[at] ?? 0) >> 3) & 7) === 7
  return withModrm(code, { start, at, rex, writes: isCompare ? 'none' : form.writes, immediate: form.immediate })
}

/** Opcodes of two bytes. */
function decodeLong(code: Uint8Array, start: number, at: number, rex: number): Instruction | undefined {
  const opcode = code[at]
  if (opcode === undefined) return undefined
  const modrm = { start, at: at + 1, rex, immediate: 0 }
  if (opcode >= 0x80 && opcode <= 0x8f) return { ...plain(at + 5 - start), kind: 'branch' }
  // nop of many bytes: only the latest kernels emulate it, so it does not count as cheap.
  if (opcode === 0x1f) return withModrm(code, { ...modrm, writes: 'none' })
  if (opcode >= 0x90 && opcode <= 0x9f) return withModrm(code, { ...modrm, writes: 'operand' })
  if (VECTOR_MOVES.includes(opcode)) return withModrm(code, { ...modrm, writes: 'none' })
  const writesRegister = (opcode >= 0x40 && opcode <= 0x4f) || [0xb6, 0xb7, 0xbe, 0xbf, 0xaf].includes(opcode)
  return writesRegister ? withModrm(code, { ...modrm, writes: 'register' }) : undefined
}

function decodeJump(code: Uint8Array, start: number, at: number, opcode: number): Instruction | undefined {
  const view = new DataView(code.buffer, code.byteOffset, code.byteLength)
  if (opcode >= 0x70 && opcode <= 0x7f) return { ...plain(at + 1 - start), kind: 'branch' }
  if (opcode === 0xe8 || opcode === 0xe9) {
    if (at + 4 > code.length) return undefined
    const target = at + 4 + view.getInt32(at, true)
    return { ...plain(at + 4 - start), kind: opcode === 0xe8 ? 'call' : 'jump', target }
  }
  if (opcode !== 0xeb || at + 1 > code.length) return undefined
  return { ...plain(at + 1 - start), kind: 'jump', target: at + 1 + view.getInt8(at) }
}

interface Operands {
  readonly start: number
  /** Where the ModRM byte is. */
  readonly at: number
  readonly rex: number
  readonly writes: 'register' | 'operand' | 'none'
  readonly immediate: number
}

/** Length by ModRM, SIB and displacement, as the manual's table of addressing forms has it. */
function withModrm(code: Uint8Array, { start, at, rex, writes, immediate }: Operands): Instruction | undefined {
  const modrm = code[at]
  if (modrm === undefined) return undefined
  const mod = modrm >> 6
  const operand = modrm & 7
  let length = at + 1 - start
  if (mod !== 3 && operand === 4) {
    const base = (code[at + 1] ?? 0) & 7
    length += 1 + (mod === 0 && base === 5 ? 4 : 0)
  }
  if (mod === 1) length += 1
  else if (mod === 2 || (mod === 0 && operand === 5)) length += 4
  length += immediate
  if (writes === 'register') return plain(length, ((modrm >> 3) & 7) | ((rex & 4) << 1))
  return plain(length, writes === 'operand' && mod === 3 ? operand | ((rex & 1) << 3) : undefined)
}

function plain(length: number, writes?: number): Instruction {
  return { length, kind: 'plain', writes, target: undefined }
}
