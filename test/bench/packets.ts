import { execFile, execFileSync } from 'node:child_process'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { constants, setPriority } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { compile } from '@tollward/libbpf'
import { type NetworkNamespace, networkNamespace, startProcess, temporaryDirectory } from '@tollward/testkit'
import { ROOT } from '../checks/copy.ts'
import { GENERATOR_CORE, SERVER_CORE } from './cores.ts'
import type { PacketOrder, PacketReport } from './packet-generator.ts'

/** struct sender of bpf/tests/packets.bpf.c. */
export const SENDER_BYTES = 8
/** struct order of bpf/tests/packets.bpf.c. */
export const ORDER = { bytes: 40, ifindex: 0, senders: 4, gapNs: 12, sent: 24 } as const
const FRAME_BYTES = 60
const IP_AT = 14
const UDP_AT = 34
const UDP = 17
/** Nobody listens there. */
const PORT = 8080

/** A sender of UDP: an IPv4 address as a number, and its port. */
export interface Sender {
  readonly address: number
  readonly port: number
}

/** A cable to a namespace; what arrives at one end of it is taken in by a thread of the kernel bound to one core. */
export interface Cable extends AsyncDisposable {
  readonly namespace: NetworkNamespace
  /** Where they arrive. */
  readonly device: string
  /** Sends from all of them in turns, from another core; gives what the kernel made of it at the other end. */
  send(senders: Senders, durationMs: number, perSecond?: number): Promise<Arrived>
  /** Keeps the list of senders for `send`. */
  senders(list: readonly Sender[]): Senders
}

export interface Senders {
  readonly file: string
}

export interface Arrived {
  readonly sent: number
  /** Taken in by the device, whatever became of them then. */
  readonly arrived: number
  readonly durationMs: number
  /** CPU time of the kernel's thread that takes them in. */
  readonly cpuNs: number
  /** That got as far as looking for a socket. */
  readonly delivered: number
}

const execute = promisify(execFile)

/** Object of bpf/tests, made if it is missing or stale. */
export function compilePackets(): Promise<string> {
  return compile(join(ROOT, 'bpf/tests'), 'build/packets.bpf.o')
}

/** Where packets arrive: inside the namespace, where rules bother nobody, or on this side. */
export type Side = 'inside' | 'here'

/** One end of the cable, and how to run a program there. */
interface End {
  readonly device: string
  readonly address: string
  readonly exec: (command: string, args: readonly string[]) => Promise<string>
  /** Before a command, for a process that is to stay there. */
  readonly entering: readonly string[]
}

/** Needs root and the tools ip, ethtool, nsenter and taskset. */
export async function packetCable(to: Side = 'inside'): Promise<Cable> {
  await using resources = new AsyncDisposableStack()
  const object = await compilePackets()
  const files = resources.use(await temporaryDirectory('packets'))
  const namespace = resources.use(await networkNamespace())
  const [end, from] = to === 'inside' ? [inside(namespace), here(namespace)] : [here(namespace), inside(namespace)]
  // The device's own receive queue, as a network card's driver has one; without it, a veth has it for XDP only.
  await end.exec('ethtool', ['-K', end.device, 'gro', 'on'])
  await end.exec('sh', ['-c', `echo 1 > /sys/class/net/${end.device}/threaded`])
  // Whom an address belongs to is not asked: the senders have no way back.
  await end.exec('sh', ['-c', `for f in all ${end.device}; do echo 0 > /proc/sys/net/ipv4/conf/$f/rp_filter; done`])
  const mac = (await end.exec('cat', [`/sys/class/net/${end.device}/address`])).trim()
  const frame = udpFrame(mac, end.address)
  let lists = 0
  const owned = resources.move()
  return {
    namespace,
    device: end.device,
    senders: (list) => {
      const file = join(files.path, `senders-${++lists}`)
      writeFileSync(file, encodeSenders(list, frame))
      return { file }
    },
    send: async ({ file }, durationMs, perSecond) => {
      const thread = receiver(end.device)
      bindReceiver(thread)
      const before = await counts(end, thread)
      const order: PacketOrder = {
        ...{ object, device: from.device, sendersFile: file, frame: frame.toString('hex'), durationMs },
        ...(perSecond === undefined ? {} : { perSecond }),
      }
      const report = await generate(order, from.entering)
      const after = await counts(end, thread)
      return {
        ...report,
        arrived: after.arrived - before.arrived,
        cpuNs: after.cpuNs - before.cpuNs,
        delivered: after.delivered - before.delivered,
      }
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

function inside({ name, device, address, exec }: NetworkNamespace): End {
  return { device, address, exec, entering: ['nsenter', `--net=/run/netns/${name}`] }
}

function here({ hostDevice, hostAddress }: NetworkNamespace): End {
  // /sys shows the devices of the network in which it was mounted, which this process may have left.
  const entering = ['--mount', 'sh', '-c', 'mount -t sysfs none /sys && exec "$@"', 'sh']
  const exec = async (command: string, args: readonly string[]) =>
    (await execute('unshare', [...entering, command, ...args])).stdout
  return { device: hostDevice, address: hostAddress, exec, entering: [] }
}

async function generate(order: PacketOrder, entering: readonly string[]): Promise<PacketReport> {
  const program = join(import.meta.dirname, 'packet-generator.ts')
  const bound = ['taskset', '-c', String(GENERATOR_CORE), process.execPath, program, JSON.stringify(order)]
  const [command = '', ...args] = [...entering, ...bound]
  const generator = await startProcess(command, args)
  const ended = await generator.exited
  const last = generator.lines.at(-1)
  if (ended !== 0 || last === undefined)
    throw new Error(`the generator ended (${ended}):\n${generator.lines.join('\n')}`)
  return JSON.parse(last) as PacketReport
}

/** To a core of its own, and before others that want it: what it does in little bits, between others, costs more. */
function bindReceiver(thread: number): void {
  execFileSync('taskset', ['-p', '-c', String(SERVER_CORE), String(thread)])
  setPriority(thread, constants.priority.PRIORITY_HIGHEST)
}

/** The kernel's thread that polls the device. */
function receiver(device: string): number {
  for (const name of readdirSync('/proc')) {
    if (/^\d+$/.test(name) && commOf(name).startsWith(`napi/${device}-`)) return Number(name)
  }
  throw new Error(`no thread of the kernel takes in what ${device} receives`)
}

function commOf(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8')
  } catch {
    // It ended while we looked.
    return ''
  }
}

async function counts({ device, exec }: End, thread: number) {
  const text = await exec('ip', ['-s', '-j', 'link', 'show', device])
  const [link] = JSON.parse(text) as { stats64: { rx: { packets: number } } }[]
  const snmp = await exec('cat', ['/proc/net/snmp'])
  const [names, values] = snmp.split('\n').filter((line) => line.startsWith('Udp:'))
  const udp = (name: string) => Number(values?.split(' ')[names?.split(' ').indexOf(name) ?? -1])
  return {
    arrived: link?.stats64.rx.packets ?? 0,
    delivered: udp('InDatagrams') + udp('NoPorts'),
    cpuNs: Number(readFileSync(`/proc/${thread}/schedstat`, 'utf8').split(' ')[0]),
  }
}

function udpFrame(mac: string, destination: string): Buffer {
  const frame = Buffer.alloc(FRAME_BYTES)
  frame.set(Buffer.from(mac.replaceAll(':', ''), 'hex'), 0)
  frame.set([2, 0, 0, 0, 0, 1], 6)
  frame.writeUInt16BE(0x0800, 12)
  frame.writeUInt8(0x45, IP_AT)
  frame.writeUInt16BE(FRAME_BYTES - IP_AT, IP_AT + 2)
  frame.writeUInt8(64, IP_AT + 8)
  frame.writeUInt8(UDP, IP_AT + 9)
  frame.set(destination.split('.').map(Number), IP_AT + 16)
  frame.writeUInt16BE(PORT, UDP_AT + 2)
  frame.writeUInt16BE(FRAME_BYTES - UDP_AT, UDP_AT + 4)
  return frame
}

function encodeSenders(list: readonly Sender[], frame: Buffer): Buffer {
  const bytes = Buffer.alloc(list.length * SENDER_BYTES)
  const header = Buffer.from(frame.subarray(IP_AT, UDP_AT))
  for (const [index, { address, port }] of list.entries()) {
    header.writeUInt32BE(address, 12)
    header.writeUInt16BE(0, 10)
    bytes.writeUInt32BE(address, index * SENDER_BYTES)
    bytes.writeUInt16BE(checksum(header), index * SENDER_BYTES + 4)
    bytes.writeUInt16BE(port, index * SENDER_BYTES + 6)
  }
  return bytes
}

/** Of an IP header (RFC 1071). */
function checksum(header: Buffer): number {
  let sum = 0
  for (let at = 0; at < header.length; at += 2) sum += header.readUInt16BE(at)
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16)
  return ~sum & 0xffff
}
