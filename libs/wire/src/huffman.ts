/*
 * The Huffman code of RFC 7541, appendix B. It is canonical: within one length codes ascend with the octets, and each length goes on where
 * the one before has ended. So the octets of each length say it all.
 */

/** Bits of a code, and in hexadecimal the octets that have codes of so many. */
const OCTETS: readonly (readonly [bits: number, octets: string])[] = [
  [5, '303132616365696f7374'],
  [6, '20252d2e2f333435363738393d415f62646667686c6d6e707275'],
  [7, '3a42434445464748494a4b4c4d4e4f5051525354555657596a6b71767778797a'],
  [8, '262a2c3b585a'],
  [10, '212228293f'],
  [11, '272b7c'],
  [12, '233e'],
  [13, '0024405b5d7e'],
  [14, '5e7d'],
  [15, '3c607b'],
  [19, '5cc3d0'],
  [20, '808283a2b8c2e0e2'],
  [21, '99a1a7acb0b1b3d1d8d9e3e5e6'],
  [22, '8184858688929a9ca0a3a4a9aaadb2b5b9babbbdbec4c6e4e8e9'],
  [23, '0187898a8b8c8d8f93959697989b9d9ea5a6a8aeafb4b6b7bcbfc5e7ef'],
  [24, '098e9091949fabced7e1eced'],
  [25, 'c7cfeaeb'],
  [26, 'c0c1c8c9cacdd2d5dadbeef0f2f3ff'],
  [27, 'cbccd3d4d6dddedff1f4f5f6f7f8fafbfcfdfe'],
  [28, '020304050607080b0c0e0f1011121314151718191a1b1c1d1e1f7fdcf9'],
  [30, '0a0d16'],
]

const OCTET_COUNT = 256
/** Of the tree; every inner node has two children, and beside the octets there is one more leaf, the end of the string. */
const INNER_NODES = OCTET_COUNT

/** In place of a child: the end of the string, which no string may hold. */
const END = -OCTET_COUNT - 1

const BITS_A_STEP = 4
const STEPS = 1 << BITS_A_STEP
/** No code is shorter than five bits, so four of them end at most one. */
const HAS_OCTET = 1 << 8
const IS_INVALID = 1 << 9
const NODE_SHIFT = 10

/** For each inner node and each four bits: the node that they lead to, and the octet that they complete on the way. */
const steps = new Uint32Array(INNER_NODES * STEPS)
/** Nodes at which a string may end: those that at most seven bits, all of them ones, lead to from the root (section 5.2). */
const mayEnd = new Uint8Array(INNER_NODES)

buildTables()

function buildTables(): void {
  const { zero, one } = buildTree()
  for (let node = 0; node < INNER_NODES; node++) {
    for (let bits = 0; bits < STEPS; bits++) steps[node * STEPS + bits] = step(node, bits)
  }
  let node = 0
  for (let padding = 0; padding < 8; padding++) {
    mayEnd[node] = 1
    node = one[node] ?? 0
  }

  function step(from: number, bits: number): number {
    let at = from
    let octet = 0
    for (let bit = BITS_A_STEP - 1; bit >= 0; bit--) {
      const next = ((bits >> bit) & 1 ? one[at] : zero[at]) ?? 0
      if (next === END) return IS_INVALID
      if (next < 0) octet = HAS_OCTET | (-next - 1)
      at = Math.max(next, 0)
    }
    return (at << NODE_SHIFT) | octet
  }
}

/** Children of the inner nodes, the root being 0: another inner node, or the octet o as -o - 1. */
function buildTree(): { zero: Int32Array; one: Int32Array } {
  const zero = new Int32Array(INNER_NODES)
  const one = new Int32Array(INNER_NODES)
  let nodes = 1
  let code = 0
  let length = 0
  const add = (bits: number, leaf: number) => {
    code <<= bits - length
    length = bits
    let node = 0
    for (let bit = bits - 1; bit > 0; bit--) {
      const children = (code >> bit) & 1 ? one : zero
      if (children[node] === 0) children[node] = nodes++
      node = children[node] ?? 0
    }
    const children = code & 1 ? one : zero
    children[node] = leaf
    code += 1
  }
  for (const [bits, octets] of OCTETS) for (const octet of Buffer.from(octets, 'hex')) add(bits, -octet - 1)
  add(30, END)
  return { zero, one }
}

/**
 * Decodes bytes from..to of a string into `out`, which has room for twice as many at least (8 bits for 5). Returns how many octets
 * there are now; -1 where no encoder could have written them (RFC 7541, section 5.2).
 */
export function huffmanDecode(bytes: Uint8Array, from: number, to: number, out: Uint8Array): number {
  let node = 0
  let length = 0
  for (let at = from; at < to; at++) {
    const byte = bytes[at] ?? 0
    const high = steps[node * STEPS + (byte >> BITS_A_STEP)] ?? 0
    const low = steps[(high >> NODE_SHIFT) * STEPS + (byte & (STEPS - 1))] ?? 0
    if ((high | low) & IS_INVALID) return -1
    if (high & HAS_OCTET) out[length++] = high & 0xff
    if (low & HAS_OCTET) out[length++] = low & 0xff
    node = low >> NODE_SHIFT
  }
  return mayEnd[node] ? length : -1
}
