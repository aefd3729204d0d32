// A process of the benchmarks of packets: sends frames from many addresses out of a device, and says how many.
import { readFileSync } from 'node:fs'
import { constants, setPriority } from 'node:os'
import process from 'node:process'
import { type BpfObject, interfaceIndex, loadObject, sendLiveFrames } from '@tollward/libbpf'
import { ORDER, SENDER_BYTES } from './packets.ts'

/** What to send; its senders are bytes in a file, as bpf/tests/packets.bpf.c reads them. */
export interface PacketOrder {
  readonly object: string
  readonly device: string
  readonly sendersFile: string
  /** Hexadecimal; IPv4 with 20 bytes of header. Each copy gets its sender's address, checksum and port. */
  readonly frame: string
  readonly durationMs: number
  /** Without it, as many as one core can. */
  readonly perSecond?: number
}

/** Its only line of output. */
export interface PacketReport {
  readonly sent: number
  readonly durationMs: number
}

/** In one system call, of which each takes milliseconds to begin: some 30 ms. */
const AT_ONCE = 65_536

/** At a pace, most of them come too early. What is due while a call begins would go in one burst, so there are few calls. */
const AT_ONCE_PACED = 250_000

const order = JSON.parse(process.argv[2] ?? '') as PacketOrder
const senders = readFileSync(order.sendersFile)
using object = load()
// Whoever takes the core away makes a burst of what should be a stream.
setPriority(constants.priority.PRIORITY_HIGHEST)
const frame = Buffer.from(order.frame, 'hex')
const beganMs = performance.now()
const atOnce = order.perSecond === undefined ? AT_ONCE : AT_ONCE_PACED
while (performance.now() - beganMs < order.durationMs) sendLiveFrames(object.program('send_on'), frame, atOnce)
const report: PacketReport = { sent: sent(), durationMs: performance.now() - beganMs }
process.stdout.write(`${JSON.stringify(report)}\n`)

function sent(): number {
  return Number(object.map('orders').lookup(Buffer.alloc(4))?.readBigUInt64LE(ORDER.sent))
}

function load(): BpfObject {
  const count = senders.length / SENDER_BYTES
  const loaded = loadObject(order.object, {
    maps: { senders: { maxEntries: count }, records: { maxEntries: 4096 } },
    withoutPrograms: ['drop_all', 'fill_ring'],
  })
  const keys = Buffer.alloc(count * 4)
  for (let index = 0; index < count; index++) keys.writeUInt32LE(index, index * 4)
  loaded.map('senders').updateBatch(keys, senders)
  const ifindex = interfaceIndex(order.device)
  if (ifindex === undefined) throw new Error(`there is no device ${order.device}`)
  const value = Buffer.alloc(ORDER.bytes)
  value.writeUInt32LE(ifindex, ORDER.ifindex)
  value.writeUInt32LE(count, ORDER.senders)
  if (order.perSecond !== undefined) value.writeUInt32LE(Math.round(1e9 / order.perSecond), ORDER.gapNs)
  loaded.map('orders').update(Buffer.alloc(4), value)
  return loaded
}
