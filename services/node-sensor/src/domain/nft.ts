import { type AddressRange, formatAddress, formatRange, parseRange, rangeContains } from '@tollward/contracts'
import { type KernelRule, portsBetween } from '@tollward/documents'
import type { WantedBlock } from './block.ts'
import type { HostRules } from './host-rules.ts'

export const NFT_TABLE = 'inet tollward'

/** What of the kernel programs nftables cannot do, or not alike; told at the start. */
export const NFT_LACKS: readonly (readonly [name: string, why: string])[] = [
  ['samples', 'nftables shows no packets: no lines of drops, and alerts without the sources'],
  ['flows and drop reasons', 'nothing is watched beside the counters of rules'],
  ['malformed packets and SYN budgets', 'TOLLWARD_DROP_ANOMALIES and TOLLWARD_SYNS_… do nothing'],
  ['later fragments', 'without connection tracking they are judged without the ports of the first one'],
  ['hits of one block', 'blocks are counted together, by address and by range'],
  ['states over a change', 'counters of the kernel and rates of sources begin anew with each change of the file'],
]

/** Sources whose rates are remembered, as the kernel programs do; of more, those beyond pass. */
const RATE_SOURCES_MAX = 65_536
/** A source that was quiet for so long begins anew: it has its whole burst again much sooner. */
const RATE_FORGOTTEN_AFTER_SECONDS = 60
const ADDRESS_BITS = 128
const DAY_SECONDS = 86_400
/** Ends that are further away are none to a kernel that is started now and then. */
const TIMEOUT_MAX_MS = 20 * 365 * 24 * 3_600_000

interface NftSettings {
  readonly mode: 'off' | 'audit' | 'enforce'
  readonly interfaces: readonly string[]
  readonly managementPorts: readonly number[]
  /** Each 16 bytes. */
  readonly guarded: readonly Uint8Array[]
  readonly nowMs: number
}

type Family = 4 | 6
const FAMILIES: readonly Family[] = [4, 6]
const OF = {
  4: { proto: 'ipv4', field: 'ip', type: 'ipv4_addr', icmp: 'icmp' },
  6: { proto: 'ipv6', field: 'ip6', type: 'ipv6_addr', icmp: 'ipv6-icmp' },
} as const

/**
 * Rules and blocks as one nftables table that takes the place of the one before at once, for `nft -f -`: in the order of the
 * kernel programs, with the same guarded addresses and management ports. Each rule has a counter of its own, `rule_NAME` with
 * _ for -, and what is dropped by it is counted by `drop_NAME` too. Ends are timeouts: they come with no sensor as well.
 */
export function rulesToNft({ rules, blocks }: Pick<HostRules, 'rules' | 'blocks'>, settings: NftSettings): string {
  const { mode, interfaces, managementPorts, guarded, nowMs } = settings
  const ordered = [...rules.values()].sort((a, b) => a.spec.priority - b.spec.priority || (a.name < b.name ? -1 : 1))
  const objects: string[] = ['counter dropped_exact { }', 'counter dropped_cidr { }']
  const devices = `{ ${interfaces.map((name) => JSON.stringify(name)).join(', ')} }`
  const ports = managementPorts.length === 0 ? undefined : `{ ${managementPorts.join(', ')} }`
  for (const family of FAMILIES) objects.push(setOf(`guarded${family}`, family, '', guardedOf(guarded, family)))
  const lines: Record<'ingress' | 'egress', string[]> = {
    ingress: [
      `iifname != ${devices} accept`,
      ...FAMILIES.map((family) => `${OF[family].field} saddr @guarded${family} accept`),
      ...(ports === undefined ? [] : [`tcp dport ${ports} accept`, `udp dport ${ports} accept`]),
    ],
    egress: [
      `oifname != ${devices} accept`,
      ...FAMILIES.map((family) => `${OF[family].field} daddr @guarded${family} accept`),
      ...(ports === undefined
        ? []
        : ['dport', 'sport'].flatMap((end) => [`tcp ${end} ${ports} accept`, `udp ${end} ${ports} accept`])),
    ],
  }
  for (const { name, spec, expiresAtMs } of ordered) {
    const made = ruleLines(name, spec, expiresAtMs, mode, nowMs)
    objects.push(...made.objects)
    lines[spec.direction].push(...made.lines)
  }
  const blocked = blockLines(blocks, mode, nowMs)
  objects.push(...blocked.objects)
  lines.ingress.push(...blocked.lines)
  const chain = (name: string, hook: string, body: readonly string[]) => [
    `  chain ${name} {`,
    `    type filter hook ${hook}; policy accept;`,
    ...(mode === 'off' ? [] : body.map((line) => `    ${line}`)),
    '  }',
  ]
  return [
    `table ${NFT_TABLE}`,
    `delete table ${NFT_TABLE}`,
    `table ${NFT_TABLE} {`,
    ...objects.map((object) => `  ${object}`),
    ...chain('ingress', 'prerouting priority -310', lines.ingress),
    // Behind the translation of addresses, as the kernel programs see packets that leave.
    ...chain('egress', 'postrouting priority 310', lines.egress),
    '}',
    '',
  ].join('\n')
}

/** The name of a rule's counters. */
export function nftName(rule: string): string {
  return rule.replaceAll('-', '_')
}

interface Made {
  readonly objects: string[]
  readonly lines: string[]
}

function ruleLines(
  name: string,
  spec: KernelRule['spec'],
  expiresAtMs: number | undefined,
  mode: NftSettings['mode'],
  nowMs: number,
): Made {
  const id = nftName(name)
  const objects = [`counter rule_${id} { }`]
  const lines: string[] = []
  const { sources, destinations, ports, protocol, action, rate, direction } = spec
  const ends = expiresAtMs === undefined ? '' : `meta nfproto @live_${id} `
  if (expiresAtMs !== undefined) {
    const timeout = `timeout ${durationText(expiresAtMs - nowMs)}`
    objects.push(
      `set live_${id} { typeof meta nfproto; flags timeout; elements = { ipv4 ${timeout}, ipv6 ${timeout} } }`,
    )
  }
  const isAudited = spec.mode === 'audit' || mode === 'audit'
  const drops = isAudited ? '' : ' drop'
  if (action === 'drop' || action === 'rate-limit') objects.push(`counter drop_${id} { }`)
  for (const family of FAMILIES) {
    const { proto, field, icmp, type } = OF[family]
    const [from, to] = [rangesOf(sources, family), rangesOf(destinations, family)]
    if (from?.length === 0 || to?.length === 0) continue
    const match = [
      `${ends}meta nfproto ${proto}`,
      from && `${field} saddr { ${from.join(', ')} }`,
      to && `${field} daddr { ${to.join(', ')} }`,
      protocol !== 'any' && `meta l4proto ${protocol === 'icmp' ? icmp : protocol}`,
      ports && `${protocol} dport { ${portTexts(ports).join(', ')} }`,
    ]
      .filter(Boolean)
      .join(' ')
    const counted = `${match} counter name rule_${id}`
    if (action === 'drop') lines.push(`${counted} counter name drop_${id}${drops}`)
    if (action === 'allow') lines.push(`${counted} accept`)
    if (action === 'alert') lines.push(counted)
    if (action !== 'rate-limit' || !rate) continue
    const peer = `${field} ${direction === 'ingress' ? 'saddr' : 'daddr'}`
    const key = family === 4 ? peer : `${peer} & ffff:ffff:ffff:ffff::`
    const { packetsPerSecond, burst = packetsPerSecond } = rate
    objects.push(
      `set rate${family}_${id} { type ${type}; size ${RATE_SOURCES_MAX}; flags dynamic,timeout; timeout ${RATE_FORGOTTEN_AFTER_SECONDS}s; }`,
    )
    const over = `update @rate${family}_${id} { ${key} limit rate over ${packetsPerSecond}/second burst ${burst} packets }`
    lines.push(counted, `${match} ${over} counter name drop_${id}${drops}`)
  }
  return { objects, lines }
}

function blockLines(blocks: readonly WantedBlock[], mode: NftSettings['mode'], nowMs: number): Made {
  const objects: string[] = []
  const lines: string[] = []
  const drops = mode === 'audit' ? '' : ' drop'
  for (const family of FAMILIES) {
    const { field } = OF[family]
    const own = blocks.filter(({ range }) => familyOf(range) === family)
    const exact = own.filter(({ range }) => range.prefixLength === ADDRESS_BITS)
    objects.push(
      setOf(
        `block${family}`,
        family,
        'timeout',
        exact.map((block) => element(block, nowMs)),
      ),
    )
    lines.push(`${field} saddr @block${family} counter name dropped_exact${drops}`)
    const ranges = own.filter(({ range }) => range.prefixLength !== ADDRESS_BITS)
    for (const [depth, level] of levels(ranges).entries()) {
      const name = `range${family}_${depth}`
      objects.push(
        setOf(
          name,
          family,
          'interval,timeout',
          level.map((block) => element(block, nowMs)),
        ),
      )
      lines.push(`${field} saddr @${name} counter name dropped_cidr${drops}`)
    }
  }
  return { objects, lines }
}

/**
 * Ranges in sets of which none holds one within another: a set of nftables takes no such two with ends of their own. A range
 * within one that lasts as long is left out.
 */
function levels(blocks: readonly WantedBlock[]): WantedBlock[][] {
  const found: WantedBlock[][] = []
  const open: WantedBlock[] = []
  const ordered = [...blocks].sort(
    (a, b) => Buffer.compare(a.range.address, b.range.address) || a.range.prefixLength - b.range.prefixLength,
  )
  for (const block of ordered) {
    let outer = open.at(-1)
    while (outer && !rangeContains(outer.range, block.range.address)) {
      open.pop()
      outer = open.at(-1)
    }
    if (outer && outer.expiresAtMs >= block.expiresAtMs) continue
    const level = found[open.length] ?? []
    found[open.length] = level
    level.push(block)
    open.push(block)
  }
  return found
}

function setOf(name: string, family: Family, flags: string, elements: readonly string[]): string {
  const listed = elements.length === 0 ? '' : ` elements = { ${elements.join(', ')} }`
  return `set ${name} { type ${OF[family].type};${flags === '' ? '' : ` flags ${flags};`}${listed} }`
}

function element({ range, expiresAtMs }: WantedBlock, nowMs: number): string {
  const leftMs = expiresAtMs - nowMs
  return leftMs > TIMEOUT_MAX_MS ? formatRange(range) : `${formatRange(range)} timeout ${durationText(leftMs)}`
}

/** nft takes few digits of each unit. */
function durationText(leftMs: number): string {
  const ms = Math.max(1, Math.ceil(leftMs))
  const seconds = Math.floor(ms / 1000)
  return `${Math.floor(seconds / DAY_SECONDS)}d${seconds % DAY_SECONDS}s${ms % 1000}ms`
}

function guardedOf(guarded: readonly Uint8Array[], family: Family): string[] {
  const texts = guarded.map(formatAddress).filter((text) => (text.includes(':') ? 6 : 4) === family)
  return [...new Set(texts)]
}

/** Of a list of a rule; undefined: all addresses. */
function rangesOf(written: readonly string[] | undefined, family: Family): string[] | undefined {
  return written
    ?.map((text) => parseRange(text))
    .filter((range) => range !== undefined)
    .filter((range) => familyOf(range) === family)
    .map(formatRange)
}

function familyOf(range: AddressRange): Family {
  return formatRange(range).includes(':') ? 6 : 4
}

function portTexts(ports: readonly (number | string)[]): string[] {
  return ports.map((written) => {
    const [first, last] = portsBetween(written) ?? [0, 0]
    return first === last ? String(first) : `${first}-${last}`
  })
}
