// A process of the benchmarks of packets: sends frames from many addresses out of a device, and says how many.
import { readFileSync } from 'node:fs'
import process from 'node:process'
import { setTimeout as pause } from 'node:timers/promises'
import { type BpfObject, interfaceIndex, loadObject, sendLiveFrames } from '@tollward/libbpf'
import { SENDER_BYTES } from './packets.ts'

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

/** In one system call: some 15 ms. */
const AT_ONCE = 65_536
const PACE_MS = 10

const order = JSON.parse(process.argv[2] ?? '') as PacketOrder
const senders = readFileSync(order.sendersFile)
using object = load()
const frame = Buffer.from(order.frame, 'hex')
const beganMs = performance.now()
let sent = 0
while (performance.now() - beganMs < order.durationMs) {
  const due = order.perSecond === undefined ? AT_ONCE : dueNow(order.perSecond)
  if (due > 0) sendLiveFrames(object.program('send_on'), frame, due)
  sent += due
  if (order.perSecond !== undefined) await pause(PACE_MS)
}
const report: PacketReport = { sent, durationMs: performance.now() - beganMs }
process.stdout.write(`${JSON.stringify(report)}\n`)

function dueNow(perSecond: number): number {
  return Math.floor(((performance.now() - beganMs) / 1000) * perSecond) - sent
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
  const value = Buffer.alloc(16)
  value.writeUInt32LE(ifindex, 0)
  value.writeUInt32LE(count, 4)
  loaded.map('orders').update(Buffer.alloc(4), value)
  return loaded
}
