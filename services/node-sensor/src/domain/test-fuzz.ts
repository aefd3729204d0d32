import assert from 'node:assert/strict'
import { toBinary } from '@bufbuild/protobuf'
import { type CapturedCall, CapturedCallSchema } from '@tollward/contracts/sensor'
import type { Chunk } from '@tollward/libbpf'
import type { Conversation, Piece } from '@tollward/testkit/fuzz'
import { CallAssembly } from './call-assembly.ts'

/** Lanes: direction, whether the side is known, and one of four connections. */
export const CHUNK_LANES = 16
const CONNECTIONS_MAX = 3
/** The largest call takes some 20 KiB. */
const CALL_BYTES_MAX = 64 * 1024
const PATH_LENGTH_MAX = 3 * 1024
const HOST_LENGTH_MAX = 255

/** Whatever chunks come: nothing is thrown, each call can be published, and those of a connection are the same whoever else is heard. */
export function assemble(conversation: Conversation): void {
  for (const call of told(conversation, CONNECTIONS_MAX)) assertPublishable(call)
  const together = told(conversation, CHUNK_LANES)
  const connections = new Set(conversation.map(connectionOf))
  const apart = [...connections].flatMap((connection) =>
    told(
      conversation.filter((piece) => connectionOf(piece) === connection),
      CHUNK_LANES,
    ),
  )
  assert.deepEqual(
    together.map(comparable).sort(),
    apart.map(comparable).sort(),
    'the calls of a connection are its own',
  )
}

function told(conversation: Conversation, connectionsMax: number): CapturedCall[] {
  const calls: CapturedCall[] = []
  const assembly = new CallAssembly({
    onCall: (call) => void calls.push(call),
    onLost: () => undefined,
    ownerOf: ({ pid, comm }) => ({ processId: pid, processName: comm }),
    bootedAtMs: () => 1_700_000_000_000,
    connectionsMax,
  })
  let atNs = 0n
  for (const piece of conversation) {
    atNs += 1_000_000n
    const chunk = chunkOf(piece, atNs)
    assembly.push(chunk)
    // As in the kernel's ring: what is lent is overwritten.
    chunk.bytes.fill(0)
    assert(assembly.connections <= connectionsMax, 'more connections than may be')
  }
  assembly.close()
  assert.equal(assembly.connections, 0)
  return calls
}

function chunkOf(piece: Piece, atNs: bigint): Chunk {
  const { lane, bytes, skipped, unseen } = piece
  return {
    ...{ connection: BigInt(connectionOf(piece)), direction: lane & 1 ? 'sent' : 'received', atNs },
    ...{ bytes: Buffer.from(bytes), skipped, total: bytes.length + unseen, closed: bytes.length === 0 && unseen === 0 },
    owner: { pid: 7, comm: 'api', cgroupId: 1n },
    addresses: undefined,
    ...{ binding: 'none', side: lane & 2 ? undefined : 'server', source: 'openssl' },
  }
}

function connectionOf({ lane }: Piece): number {
  return lane >> 2
}

function assertPublishable(call: CapturedCall): void {
  assert(toBinary(CapturedCallSchema, call).length <= CALL_BYTES_MAX, 'a call is small')
  assert(call.path.length <= PATH_LENGTH_MAX && call.host.length <= HOST_LENGTH_MAX)
  assert(call.requestBytes >= 0n && call.responseBytes >= 0n)
  assert(call.path === '' || !/[^\x21-\x7e]/.test(call.path), 'paths can be printed')
}

/** Times aside: they are of a clock that goes on with whatever is heard. */
function comparable({ beganAt: _, took: __, owner: ___, ...call }: CapturedCall): string {
  return JSON.stringify(call, (_key, value) => (typeof value === 'bigint' ? String(value) : value))
}
