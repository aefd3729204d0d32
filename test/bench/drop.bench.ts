import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import process from 'node:process'
import { ensureSystemPackages } from '@tollward/acquire'
import {
  attachXdp,
  type BlockMaps,
  blockMaps,
  blockTarget,
  encodeBlock,
  interfaceIndex,
  LAYOUT_VERSION,
  loadObject,
  openPinnedMap,
  removePins,
} from '@tollward/libbpf'
import { freePort, requires, startProcess, temporaryDirectory } from '@tollward/testkit'
import { ROOT } from '../checks/copy.ts'
import { GENERATOR_CORE } from './cores.ts'
import { median, rounded } from './latencies.ts'
import { type Arrived, type Cable, compilePackets, packetCable } from './packets.ts'

/** One line of the table. */
export interface Row {
  readonly [column: string]: string | number
}

export const name = 'drop: packets of blocked sources, 100,000 addresses and 10,000 ranges blocked'

const ADDRESSES = 100_000
const RANGES = 10_000
const ROUNDS = 3
const TURN_MS = 1000
const WARM_UP_MS = 200
/** What is promised: so much more on one core than an nftables set in the ingress hook. */
const TIMES_NFTABLES = 2.5
const SENSOR_READY_MS = 20_000
const SENDER_PORT = 40_000
/** From an address of 20.0.0.0/8 to one of 84.0.0.0/8, none of which is blocked. */
const OTHERS = 0x4000_0000

interface Blocked {
  readonly addresses: readonly number[]
  /** Each a /24. */
  readonly ranges: readonly number[]
}

/** One way to drop. */
interface Contender {
  readonly what: string
  /** Loads the lists and puts them in the way of packets. */
  readonly setUp: (cable: Cable, blocked: Blocked) => Promise<AsyncDisposable>
  /** Whether it drops nothing of blocked sources, or everything of all. */
  readonly lets?: 'all' | 'none'
  /** Measured with packets that nobody blocks, too. */
  readonly withOthers?: true
}

const NOTHING = 'nothing: looked for a socket'
const OURS = 'Tollward'
const BAR = 'nftables ingress, sets'

/** The ceiling and the floor first, then Tollward, then what users would take. */
const CONTENDERS: readonly Contender[] = [
  { what: NOTHING, setUp: async () => new AsyncDisposableStack(), lets: 'all', withOthers: true },
  { what: 'bare XDP_DROP', setUp: bareDrop, lets: 'none' },
  { what: OURS, setUp: tollward, withOthers: true },
  { what: BAR, setUp: (cable, blocked) => nftables(cable, blocked, 'ingress'), withOthers: true },
  { what: 'nftables raw prerouting, sets', setUp: (cable, blocked) => nftables(cable, blocked, 'prerouting') },
  { what: 'iptables raw PREROUTING, ipset', setUp: (cable, blocked) => iptables(cable, blocked, 'raw', 'PREROUTING') },
  { what: 'iptables INPUT, ipset', setUp: (cable, blocked) => iptables(cable, blocked, 'filter', 'INPUT') },
]

/** Who sends. With 100,000 in turns nothing of them is in the processor's caches: the worst that an attacker can do. */
interface Traffic {
  readonly from: string
  readonly isBlocked: boolean
  readonly senders: (blocked: Blocked) => readonly number[]
}

const TRAFFIC: readonly Traffic[] = [
  { from: '1,000 blocked addresses', isBlocked: true, senders: ({ addresses }) => shuffled(addresses).slice(0, 1000) },
  { from: '100,000 blocked addresses', isBlocked: true, senders: ({ addresses }) => shuffled(addresses) },
  {
    from: '100,000 of 10,000 blocked ranges',
    isBlocked: true,
    senders: ({ ranges }) => shuffled(ranges.flatMap(tenOf)),
  },
  {
    from: '1,000 others',
    isBlocked: false,
    senders: ({ ranges }) => ranges.slice(0, 1000).map((range) => range + OTHERS),
  },
]

/**
 * Sources send UDP as fast as one core can; another core takes the packets in. What is compared is the CPU time of taking in one
 * packet and dropping it, which others on the machine change less than a rate: 1 s divided by it is what one core can drop.
 */
export async function run(): Promise<{ rows: Row[] }> {
  if (process.getuid?.() === 0) await ensureSystemPackages(['nftables', 'iptables', 'ipset', 'ethtool'])
  const tools = ['ip', 'nft', 'iptables', 'ipset', 'ethtool', 'taskset', 'nsenter', 'clang', 'make']
  const missing = await requires({ root: true, tools })
  if (missing !== false) return { rows: [{ what: `not run: ${missing}` }] }
  await using cable = await packetCable()
  const blocked = chooseBlocked()
  const rows: Row[] = []
  for (const traffic of TRAFFIC) rows.push(...rowsOf(traffic, await takeTurns(cable, blocked, traffic)))
  return { rows }
}

type Turns = ReadonlyMap<Contender, readonly Arrived[]>

async function takeTurns(cable: Cable, blocked: Blocked, { isBlocked, senders }: Traffic): Promise<Turns> {
  const list = cable.senders(senders(blocked).map((address) => ({ address, port: SENDER_PORT })))
  const those = CONTENDERS.filter(({ withOthers }) => isBlocked || withOthers)
  const turns = new Map(those.map((contender) => [contender, [] as Arrived[]]))
  for (let round = 0; round < ROUNDS; round++) {
    for (const [contender, arrivals] of turns) {
      await using _ = await contender.setUp(cable, blocked)
      await cable.send(list, WARM_UP_MS)
      const arrived = await cable.send(list, TURN_MS)
      const isDropped = contender.lets === undefined ? isBlocked : contender.lets === 'none'
      if (arrived.arrived === 0 || arrived.delivered > 0 === isDropped)
        throw new Error(`${contender.what}: ${arrived.delivered} of ${arrived.arrived} packets came through`)
      arrivals.push(arrived)
    }
  }
  return turns
}

function rowsOf({ from, isBlocked }: Traffic, turns: Turns): Row[] {
  const costNs = (arrivals: readonly Arrived[]) => median(arrivals.map(({ cpuNs, arrived }) => cpuNs / arrived))
  const costs = new Map([...turns].map(([{ what }, arrivals]) => [what, costNs(arrivals)]))
  const cost = (what: string) => costs.get(what) ?? Number.NaN
  const rows = [...turns].map(([{ what }, arrivals]) => ({
    ...{ from, what, nsEach: Math.round(cost(what)), mppsOfOneCore: rounded(1000 / cost(what)) },
    mppsSeen: rounded(median(arrivals.map(({ arrived, durationMs }) => arrived / durationMs / 1000))),
    timesNftablesIngress: rounded(cost(BAR) / cost(what)),
  }))
  if (!isBlocked)
    return [...rows, { from, what: `Tollward costs a passing packet ns ${Math.round(cost(OURS) - cost(NOTHING))}` }]
  const holds = cost(BAR) / cost(OURS) >= TIMES_NFTABLES
  return [...rows, { from, what: `at least ${TIMES_NFTABLES} times nftables ingress: ${holds ? 'kept' : 'NOT KEPT'}` }]
}

/** The same in each run: hash tables and tries are as good or bad each time. */
function chooseBlocked(): Blocked {
  const random = generator(0x70_11_3a_2d)
  const addresses = new Set<number>()
  while (addresses.size < ADDRESSES) addresses.add(0x0a00_0000 + Math.floor(random() * 0x0100_0000))
  const ranges = new Set<number>()
  while (ranges.size < RANGES) ranges.add(0x1400_0000 + Math.floor(random() * 0x1_0000) * 256)
  return { addresses: [...addresses], ranges: [...ranges] }
}

/** Ten addresses of a /24. */
function tenOf(range: number): number[] {
  return Array.from({ length: 10 }, (_, index) => range + index * 25)
}

function shuffled(values: readonly number[]): number[] {
  const random = generator(1)
  const order = values.map((value) => ({ value, at: random() }))
  return order.sort((one, other) => one.at - other.at).map(({ value }) => value)
}

/** Numbers from 0 to 1 that are the same for the same seed (mulberry32). */
function generator(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000
  }
}

async function bareDrop({ namespace }: Cable): Promise<AsyncDisposable> {
  await using stack = new AsyncDisposableStack()
  const object = stack.use(
    loadObject(await compilePackets(), { maps: { senders: { maxEntries: 1 }, records: { maxEntries: 4096 } } }),
  )
  stack.use(
    namespace.within(() =>
      attachXdp(object.program('drop_all'), { ifindex: indexOf(namespace.device), mode: 'native' }),
    ),
  )
  return stack.move()
}

function indexOf(device: string): number {
  const index = interfaceIndex(device)
  if (index === undefined) throw new Error(`there is no device ${device}`)
  return index
}

/** The real service; the lists are put into its pinned maps, as if it had read them from a bus that is now away. */
async function tollward({ namespace }: Cable, { addresses, ranges }: Blocked): Promise<AsyncDisposable> {
  await using stack = new AsyncDisposableStack()
  const pins = `/sys/fs/bpf/tollward-bench-drop-${process.pid}`
  stack.defer(() => void removePins(pins))
  const node = ['-c', String(GENERATOR_CORE), process.execPath, join(ROOT, 'services/node-sensor/src/main.ts')]
  const sensor = stack.use(
    await startProcess('nsenter', [`--net=/run/netns/${namespace.name}`, 'taskset', ...node], {
      env: {
        PATH: process.env.PATH,
        TOLLWARD_NATS_URL: 'nats://127.0.0.1:4222',
        TOLLWARD_HEALTH_PORT: String(await freePort()),
        TOLLWARD_INTERFACES: namespace.device,
        TOLLWARD_PIN_DIRECTORY: pins,
      },
    }),
  )
  await sensor.line(/"hook":"egress"/, SENSOR_READY_MS)
  const directory = readdirSync(pins).find((entry) => entry.startsWith(`v${LAYOUT_VERSION}_`)) ?? ''
  using opened = new DisposableStack()
  const maps = blockMaps({ map: (map) => opened.use(openPinnedMap(join(pins, directory, map))) })
  block(maps, addresses, 128)
  block(maps, ranges, 120)
  return stack.move()
}

/** All of one prefix length, in the 128-bit form. */
function block(maps: BlockMaps, addresses: readonly number[], prefixLength: number): void {
  const entries = addresses.map((address) => {
    const bytes = Buffer.from('00000000000000000000ffff00000000', 'hex')
    bytes.writeUInt32BE(address, 12)
    const target = blockTarget({ address: bytes, prefixLength })
    return { target, value: encodeBlock(target, { expiresNs: 0n, ruleId: 1, mode: 'drop' }) }
  })
  const keys = entries.map(({ target }) => target.key)
  maps[prefixLength === 128 ? 'block_exact' : 'block_cidr4'].updateBatch(
    Buffer.concat(keys),
    Buffer.concat(entries.map(({ value }) => value)),
    'new',
  )
}

async function nftables(
  { namespace }: Cable,
  blocked: Blocked,
  hook: 'ingress' | 'prerouting',
): Promise<AsyncDisposable> {
  const [family, where] =
    hook === 'ingress'
      ? ['netdev', `ingress device "${namespace.device}" priority -500`]
      : ['ip', 'prerouting priority raw']
  const text = `table ${family} bench {
    set addresses { type ipv4_addr; elements = { ${blocked.addresses.map(dotted).join(', ')} } }
    set ranges { type ipv4_addr; flags interval; elements = { ${blocked.ranges.map((range) => `${dotted(range)}/24`).join(', ')} } }
    chain drops {
      type filter hook ${where}; policy accept;
      ip saddr @addresses drop
      ip saddr @ranges drop
    }
  }`
  await inFile(text, (file) => namespace.exec('nft', ['-f', file]))
  return undo(() => namespace.exec('nft', ['delete', 'table', family, 'bench']))
}

async function iptables(
  { namespace }: Cable,
  blocked: Blocked,
  table: string,
  chain: string,
): Promise<AsyncDisposable> {
  const sets = { addresses: 'hash:ip', ranges: 'hash:net' } as const
  const lines = (Object.keys(sets) as (keyof typeof sets)[]).flatMap((set) => [
    `create ${set} ${sets[set]} maxelem 1000000 hashsize 65536`,
    ...blocked[set].map((address) => `add ${set} ${dotted(address)}${set === 'ranges' ? '/24' : ''}`),
  ])
  await inFile(`${lines.join('\n')}\n`, (file) => namespace.exec('ipset', ['-file', file, 'restore']))
  const rules = Object.keys(sets).map((set) => [chain, '-m', 'set', '--match-set', set, 'src', '-j', 'DROP'])
  for (const rule of rules) await namespace.exec('iptables', ['-t', table, '-A', ...rule])
  return undo(async () => {
    for (const rule of rules) await namespace.exec('iptables', ['-t', table, '-D', ...rule])
    await namespace.exec('ipset', ['destroy'])
  })
}

async function inFile(text: string, use: (file: string) => Promise<unknown>): Promise<void> {
  await using directory = await temporaryDirectory('drop')
  const file = join(directory.path, 'rules')
  writeFileSync(file, text)
  await use(file)
}

function dotted(address: number): string {
  return [24, 16, 8, 0].map((shift) => (address >>> shift) & 0xff).join('.')
}

function undo(work: () => Promise<unknown>): AsyncDisposable {
  return { [Symbol.asyncDispose]: async () => void (await work()) }
}
