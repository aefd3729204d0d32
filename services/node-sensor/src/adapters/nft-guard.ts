import { release } from 'node:os'
import { setTimeout as delay } from 'node:timers/promises'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs, timestampNow } from '@bufbuild/protobuf/wkt'
import { type SensorState, SensorStateSchema } from '@tollward/contracts/sensor'
import type { Logger } from 'pino'
import manifest from '../../package.json' with { type: 'json' }
import type { SensorConfig } from '../config.ts'
import type { HostRules } from '../domain/host-rules.ts'
import { NFT_LACKS, nftName, rulesToNft } from '../domain/nft.ts'
import { type Reading, RuleAlerts } from '../domain/rule-alerts.ts'
import type { Journal } from './journal.ts'
import { readTable, runNft } from './nft.ts'
import { addressesToGuard } from './node.ts'
import type { StateDestination } from './state-report.ts'

const STATE_FORMAT = 1
const LOOK_INTERVAL_MS = 2000
/** A wall clock that moved by more against the kernel's was set: timeouts do not follow it. */
const CLOCK_STEP_MS = 1000

interface NftGuardOptions {
  readonly config: SensorConfig
  readonly log: Logger
}

/** Rules and blocks in a table of nftables, in the place of kernel programs. */
export class NftGuard {
  readonly #options: NftGuardOptions
  readonly #startedMs = Date.now()
  readonly #alerts: RuleAlerts
  /** What is in force by this process, and how many rules of the table say it; before the first: what an earlier one left. */
  #rules: HostRules | undefined
  #rulesInTable = 0
  #guarded = ''
  #bootedAtMs = wallTimeOfStartMs()
  /** By counter, of tables before this one, and of all as they were read last. */
  #before: ReadonlyMap<string, bigint> = new Map()
  #counted: ReadonlyMap<string, bigint> = new Map()
  /** Ends when what was begun last has ended. */
  #turn: Promise<unknown> = Promise.resolve()
  #fault: string | undefined

  constructor(options: NftGuardOptions) {
    this.#options = options
    this.#alerts = new RuleAlerts(options.config.node)
  }

  /** Puts these in force, in one step. */
  enforce(rules: HostRules): Promise<void> {
    return this.#inTurn(() => this.#put(rules))
  }

  /** Why the table is not as it should be; undefined: it is. */
  fault(): string | undefined {
    return this.#fault
  }

  /** Keeps the table as the host is, and tells what it counts, until the signal is aborted. */
  async run(
    journal: Journal,
    to: StateDestination,
    faults: () => readonly string[],
    signal: AbortSignal,
  ): Promise<void> {
    while (!signal.aborted) {
      try {
        await this.#inTurn(() => this.#follow())
        for (const alert of this.#alerts.look(this.#readings(), Date.now())) journal.alert(alert)
        this.#fault = undefined
        await to.put(this.#state(faults()))
      } catch (error) {
        if (this.#fault === undefined) this.#options.log.error({ err: error }, 'the table could not be looked at')
        this.#fault = error instanceof Error ? error.message : String(error)
      }
      await delay(LOOK_INTERVAL_MS, undefined, { signal }).catch(() => undefined)
    }
  }

  /** One after the other: a table of earlier rules must not take the place of one that was made meanwhile. */
  #inTurn(work: () => Promise<void>): Promise<void> {
    const done = this.#turn.then(work)
    this.#turn = done.catch(() => undefined)
    return done
  }

  async #put(rules: HostRules): Promise<void> {
    const { mode, interfaces, managementPorts, guardedAddresses } = this.#options.config
    const guarded = addressesToGuard(guardedAddresses)
    const script = rulesToNft(rules, { mode, interfaces, managementPorts, guarded, nowMs: Date.now() })
    if (this.#rules) this.#count((await readTable())?.counters)
    await runNft(script)
    this.#before = this.#counted
    this.#rules = rules
    this.#guarded = keyOf(guarded)
    this.#rulesInTable = (await readTable())?.rules ?? 0
  }

  /** Counts, and makes the table anew when this host has other addresses or another time, and when somebody took it away. */
  async #follow(): Promise<void> {
    if (!this.#rules) return
    const bootedAtMs = wallTimeOfStartMs()
    const isMoved = Math.abs(bootedAtMs - this.#bootedAtMs) > CLOCK_STEP_MS
    const guarded = keyOf(addressesToGuard(this.#options.config.guardedAddresses))
    const table = await readTable()
    this.#count(table?.counters)
    const isOther = table?.rules !== this.#rulesInTable
    if (isOther) this.#options.log.warn('somebody changed the table, or took it away; it is put back')
    if (!isOther && !isMoved && guarded === this.#guarded) return
    await this.#put(this.#rules)
    this.#bootedAtMs = bootedAtMs
  }

  /** Since this process began, over every table that it made. What a table counted since it was read last goes with it. */
  #count(counters: ReadonlyMap<string, bigint> | undefined): void {
    if (!counters) return
    const sum = new Map(this.#before)
    for (const [name, packets] of counters) sum.set(name, (sum.get(name) ?? 0n) + packets)
    this.#counted = sum
  }

  #readings(): Reading[] {
    const { mode } = this.#options.config
    return this.#wanted().flatMap(({ name, spec }): Reading[] => {
      if (spec.action === 'allow') return []
      const when = spec.action === 'alert' ? 'alert' : 'drop'
      const packets = this.#counted.get(`${when === 'alert' ? 'rule' : 'drop'}_${nftName(name)}`) ?? 0n
      const audited = spec.mode === 'audit' || mode === 'audit'
      return [{ key: `rule/${name}`, name: `KernelRule/${name}`, when, packets, audited }]
    })
  }

  #wanted() {
    return [...(this.#rules?.rules.values() ?? [])]
  }

  #state(faults: readonly string[]): SensorState {
    const { node, mode, interfaces } = this.#options.config
    const count = (name: string) => this.#counted.get(name) ?? 0n
    return create(SensorStateSchema, {
      ...{ format: STATE_FORMAT, node, version: manifest.version, kernel: release(), mode, faults: [...faults] },
      ...{ startedAt: timestampFromMs(this.#startedMs), reportedAt: timestampNow() },
      interfaces: interfaces.map((name) => ({ name, ingress: 'nftables', egress: 'nftables' })),
      counters: ['dropped_exact', 'dropped_cidr'].map((name) => ({ name, value: count(name) })),
      capabilities: NFT_LACKS.map(([name, why]) => ({ name, on: false, why })),
      rules: this.#wanted().map(({ name, spec }) => {
        const [packets, over] = [count(`rule_${nftName(name)}`), count(`drop_${nftName(name)}`)]
        const isAudited = spec.mode === 'audit' || mode === 'audit'
        const became = isAudited ? { dropped: 0n, audited: over } : { dropped: over, audited: 0n }
        return { ...{ name, action: spec.action, mode: spec.mode, packets, fault: '' }, ...became }
      }),
    })
  }
}

function keyOf(addresses: readonly Uint8Array[]): string {
  return addresses
    .map((address) => Buffer.from(address).toString('hex'))
    .sort()
    .join()
}

/** When this process began, by the wall clock as it is set now. */
function wallTimeOfStartMs(): number {
  return Date.now() - performance.now()
}
