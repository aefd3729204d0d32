import { check, checkPointer, libbpf, type Pointer, viewOf } from './native.ts'

const KERNEL_TYPES = '/sys/kernel/btf/vmlinux'
const KIND_STRUCT = 4
const KIND_ENUM = 6
const TYPE_BYTES = 12
const MEMBER_BYTES = 12
const ENUMERATOR_BYTES = 8

/** A C structure as the compiler laid it out: bytes in all, and offset of each member in bytes. */
export interface StructLayout {
  readonly bytes: number
  readonly offsets: Readonly<Record<string, number>>
}

/** Layout of a structure, read from the BTF of an object file. */
export function structLayout(path: string, name: string): StructLayout {
  return withType(path, name, KIND_STRUCT, (bytes, members, nameAt) => ({
    bytes,
    offsets: readAll(members, MEMBER_BYTES, nameAt, (member) => member.readUInt32LE(8) / 8),
  }))
}

/** Names and values of an enumeration, read from the BTF of an object file. */
export function enumValues(path: string, name: string): Record<string, number> {
  return withType(path, name, KIND_ENUM, (_bytes, members, nameAt) =>
    readAll(members, ENUMERATOR_BYTES, nameAt, (member) => member.readInt32LE(4)),
  )
}

/** Whether the kernel has a tracepoint of this name that programs of the kind tp_btf can be put on. */
export function hasKernelTracepoint(name: string): boolean {
  const btf = checkPointer(`BTF of ${KERNEL_TYPES}`, libbpf().btf__parse(KERNEL_TYPES, null))
  try {
    return libbpf().btf__find_by_name(btf, `btf_trace_${name}`) > 0
  } finally {
    libbpf().btf__free(btf)
  }
}

/** Where one member of a structure lies. */
export interface Member {
  readonly at: number
  readonly bytes: number
}

/** Members of a structure by name, from types that the kernel keeps; undefined if the type is no structure. */
export function kernelMembers(btfId: number, typeId: number): Record<string, Member> | undefined {
  const btf = checkPointer(`types ${btfId}`, libbpf().btf__load_from_kernel_by_id(btfId))
  try {
    const type = checkPointer(`type ${typeId}`, libbpf().btf__type_by_id(btf, typeId))
    const info = bytesAt(type, TYPE_BYTES).readUInt32LE(4)
    if (((info >> 24) & 31) !== KIND_STRUCT) return undefined
    const members = bytesAt(type + BigInt(TYPE_BYTES), (info & 0xffff) * MEMBER_BYTES)
    const nameAt = (offset: number) => libbpf().btf__name_by_offset(btf, offset)
    return readAll(members, MEMBER_BYTES, nameAt, (member) => ({
      at: member.readUInt32LE(8) / 8,
      bytes: Number(libbpf().btf__resolve_size(btf, member.readUInt32LE(4))),
    }))
  } finally {
    libbpf().btf__free(btf)
  }
}

type NameAt = (offset: number) => string

function withType<T>(
  path: string,
  name: string,
  kind: number,
  read: (bytes: number, members: Buffer, nameAt: NameAt) => T,
): T {
  const btf = checkPointer(`BTF of ${path}`, libbpf().btf__parse(path, null))
  try {
    const id = check(`type ${name} in ${path}`, libbpf().btf__find_by_name(btf, name))
    const type = checkPointer(`type ${name}`, libbpf().btf__type_by_id(btf, id))
    const head = bytesAt(type, TYPE_BYTES)
    const info = head.readUInt32LE(4)
    if (((info >> 24) & 31) !== kind) throw new TypeError(`${name} in ${path} is of another kind`)
    const memberBytes = (info & 0xffff) * (kind === KIND_STRUCT ? MEMBER_BYTES : ENUMERATOR_BYTES)
    const members = bytesAt(type + BigInt(TYPE_BYTES), memberBytes)
    return read(head.readUInt32LE(8), members, (offset) => libbpf().btf__name_by_offset(btf, offset))
  } finally {
    libbpf().btf__free(btf)
  }
}

function readAll<T>(members: Buffer, step: number, nameAt: NameAt, readMember: (member: Buffer) => T) {
  const found: Record<string, T> = {}
  for (let at = 0; at < members.length; at += step) {
    const member = members.subarray(at, at + step)
    found[nameAt(member.readUInt32LE(0))] = readMember(member)
  }
  return found
}

/** A copy: the memory goes with the BTF. */
function bytesAt(address: Pointer, length: number): Buffer {
  return Buffer.from(viewOf(address, length))
}
