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
import { runNft, tableCounters } from './nft.ts'
import { addressesToGuard } from './node.ts'
import type { StateDestination } from './state-report.ts'

const STATE_FORMAT = 1
const LOOK_INTERVAL_MS = 2000
/** A wall clock that moved by more against the kernel's was set: timeouts do not follow it. */
const CLOCK_STEP_MS = 1000
const NOTHING: HostRules = { rules: new Map(), blocks: [], lists: new Map(), sources: [] }

interface NftGuardOptions {
  readonly config: SensorConfig
  readonly log: Logger
}

/** Rules and blocks in a table of nftables, in the place of kernel programs. */
export class NftGuard {
  readonly #options: NftGuardOptions
  readonly #startedMs = Date.now()
  readonly #alerts: RuleAlerts
  #rules = NOTHING
  #guarded = ''
  #bootedAtMs = wallTimeOfStartMs()
  /** Of tables before this one, by counter. */
  #before = new Map<string, bigint>()
  #fault: string | undefined

  constructor(options: NftGuardOptions) {
    this.#options = options
    this.#alerts = new RuleAlerts(options.config.node)
  }

  /** Puts these in force, in one step. */
  async enforce(rules: HostRules): Promise<void> {
    const { mode, interfaces, managementPorts, guardedAddresses } = this.#options.config
    const guarded = addressesToGuard(guardedAddresses)
    const script = rulesToNft(rules, { mode, interfaces, managementPorts, guarded, nowMs: Date.now() })
    const counted = await this.#counters()
    await runNft(script)
    this.#before = counted
    this.#rules = rules
    this.#guarded = keyOf(guarded)
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
        await this.#follow()
        const counters = await this.#counters()
        for (const alert of this.#alerts.look(this.#readings(counters), Date.now())) journal.alert(alert)
        this.#fault = undefined
        await to.put(this.#state(counters, faults()))
      } catch (error) {
        if (this.#fault === undefined) this.#options.log.error({ err: error }, 'the table could not be looked at')
        this.#fault = error instanceof Error ? error.message : String(error)
      }
      await delay(LOOK_INTERVAL_MS, undefined, { signal }).catch(() => undefined)
    }
  }

  /** Makes the table anew when this host has other addresses or another time. */
  async #follow(): Promise<void> {
    const bootedAtMs = wallTimeOfStartMs()
    const isMoved = Math.abs(bootedAtMs - this.#bootedAtMs) > CLOCK_STEP_MS
    const guarded = keyOf(addressesToGuard(this.#options.config.guardedAddresses))
    if (!isMoved && guarded === this.#guarded) return
    this.#bootedAtMs = bootedAtMs
    await this.enforce(this.#rules)
  }

  /** Since this process began, over every table that it made. */
  async #counters(): Promise<Map<string, bigint>> {
    const sum = new Map(this.#before)
    if (this.#guarded === '') return sum
    for (const [name, packets] of await tableCounters()) sum.set(name, (sum.get(name) ?? 0n) + packets)
    return sum
  }

  #readings(counters: ReadonlyMap<string, bigint>): Reading[] {
    const { mode } = this.#options.config
    return [...this.#rules.rules.values()].flatMap(({ name, spec }): Reading[] => {
      if (spec.action === 'allow') return []
      const when = spec.action === 'alert' ? 'alert' : 'drop'
      const packets = counters.get(`${when === 'alert' ? 'rule' : 'drop'}_${nftName(name)}`) ?? 0n
      const audited = spec.mode === 'audit' || mode === 'audit'
      return [{ key: `rule/${name}`, name: `KernelRule/${name}`, when, packets, audited }]
    })
  }

  #state(counters: ReadonlyMap<string, bigint>, faults: readonly string[]): SensorState {
    const { node, mode, interfaces } = this.#options.config
    const count = (name: string) => counters.get(name) ?? 0n
    return create(SensorStateSchema, {
      ...{ format: STATE_FORMAT, node, version: manifest.version, kernel: release(), mode, faults: [...faults] },
      ...{ startedAt: timestampFromMs(this.#startedMs), reportedAt: timestampNow() },
      interfaces: interfaces.map((name) => ({ name, ingress: 'nftables', egress: 'nftables' })),
      counters: ['dropped_exact', 'dropped_cidr'].map((name) => ({ name, value: count(name) })),
      capabilities: NFT_LACKS.map(([name, why]) => ({ name, on: false, why })),
      rules: [...this.#rules.rules.values()].map(({ name, spec }) => {
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
