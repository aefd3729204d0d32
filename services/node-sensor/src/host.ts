import { AppError } from '@tollward/errors'
import { aborted, type ServiceContext } from '@tollward/runtime'
import { wantedOf } from './adapters/block-table.ts'
import { defaultInterfaces } from './adapters/default-routes.ts'
import { Journal } from './adapters/journal.ts'
import { removeTable, whyNoNft } from './adapters/nft.ts'
import { NftGuard } from './adapters/nft-guard.ts'
import { addressesToGuard } from './adapters/node.ts'
import { whatIsMissing } from './adapters/object-file.ts'
import { removeEverything } from './adapters/pins.ts'
import { RulesFile } from './adapters/rules-file.ts'
import { reportState } from './adapters/state-report.ts'
import type { HostConfig, SensorConfig } from './config.ts'
import type { HostRules } from './domain/host-rules.ts'
import { NFT_LACKS } from './domain/nft.ts'
import { WantedBlocks } from './domain/wanted-blocks.ts'
import { hostMetrics } from './metrics.ts'
import { openSensor, ProgramsRefused } from './sensor.ts'

interface HostContext extends ServiceContext<HostConfig> {
  /** Calls the listener at each SIGHUP from now on. */
  readonly onHangup: (listener: () => void) => void
}

/** What one of both ways of enforcing has to do until the end. */
interface Enforcing {
  readonly enforce: (rules: HostRules) => Promise<void>
  /** Once the rules are in force. */
  readonly work: (faults: () => readonly string[]) => Promise<void>[]
}

/** The sensor of one host: rules and blocks from a file, and what it sees to the journal. */
export async function runHost(context: HostContext): Promise<void> {
  const { config, log, registry, health, signal, onHangup } = context
  await using resources = new AsyncDisposableStack()
  const settings = { ...config, interfaces: config.interfaces ?? defaultInterfaces() }
  const metrics = hostMetrics(registry)
  const file: RulesFile = new RulesFile({
    ...{ path: config.rulesFile, keptPath: config.keptRulesFile, metrics, log },
    guarded: () => guardedOf(config.guardedAddresses, config.managementPorts),
    enforce: (rules) => enforcing.enforce(rules),
  })
  const journal = new Journal({ file, metrics, log })
  const enforcing = await open({ ...context, settings, resources, journal })
  health.check('file', () => file.fault())
  await file.begin()
  onHangup(() => file.reload())
  health.ready()
  log.info({ interfaces: settings.interfaces, ...file.reading() }, 'ready')
  const work = [...enforcing.work(() => health.reasons()), file.follow(signal)]
  await Promise.race([aborted(signal), ...work])
  await Promise.all(work)
}

/** What no rule and no block of this host touches. */
export function guardedOf(configured: readonly Uint8Array[], managementPorts: readonly number[]) {
  return { addresses: addressesToGuard(configured).map((address) => ({ address, prefixLength: 128 })), managementPorts }
}

interface Opening extends HostContext {
  readonly settings: HostConfig & SensorConfig
  readonly resources: AsyncDisposableStack
  readonly journal: Journal
}

/** By kernel programs if this kernel takes them, else by nftables. */
async function open(opening: Opening): Promise<Enforcing> {
  const { config, log } = opening
  if (config.enforcer === 'nftables') return await openNftables(opening, 'the setting TOLLWARD_ENFORCER says so')
  const missing = await whatIsMissing(config.bpfObject)
  const isChoice = config.enforcer === 'auto'
  if (missing.length > 0 && isChoice) return await openNftables(opening, `the programs need ${missing.join('; ')}`)
  await using own = new AsyncDisposableStack()
  try {
    const enforcing = await openKernel({ ...opening, resources: own })
    opening.resources.use(own.move())
    // Of an earlier start that could not have the programs.
    if ((await whyNoNft()) === undefined && (await removeTable()))
      log.info('the table of nftables is gone: the kernel programs have taken its place')
    return enforcing
  } catch (error) {
    if (!(error instanceof ProgramsRefused && isChoice)) throw error
    // Whoever takes earlier programs away must not find this process at them.
    await own.disposeAsync()
    return await openNftables(opening, `the kernel does not take the programs: ${error.message}`)
  }
}

async function openKernel({
  config,
  settings,
  log,
  registry,
  health,
  signal,
  resources,
  journal,
}: Opening): Promise<Enforcing> {
  const sensor = await openSensor({
    ...{ config: settings, log, registry, health, signal, resources, tellsFlows: false, needsGuard: true },
    onGuardEvent: (event, rule) => journal.packet(event, rule),
  })
  const { table, rules, outbox } = sensor
  health.check('blocks', () => (table.waiting === 0 ? undefined : `${table.waiting} found no room in the kernel`))
  health.check('rules', () => rules.fault())
  return {
    enforce: async (wanted) => {
      const blocks = new WantedBlocks()
      for (const block of wanted.blocks) blocks.set(block.range, wantedOf(block))
      table.replace(blocks)
      await rules.replace(wanted.rules)
    },
    work: (faults) => [
      ...sensor.work,
      sensor.listing,
      outbox.run(journal, signal),
      reportState({
        ...sensor,
        ...{ node: config.node, mode: config.mode, faults, to: journal.states(config.stateFile), log, signal },
      }),
    ],
  }
}

async function openNftables(
  { config, settings, log, health, signal, journal }: Opening,
  why: string,
): Promise<Enforcing> {
  const whyNot = await whyNoNft()
  if (whyNot !== undefined)
    throw new AppError('failed_precondition', `Neither kernel programs (${why}) nor nftables (${whyNot}) can be had.`)
  log.warn({ why }, 'nftables enforces in the place of the kernel programs')
  log.info({ capabilities: NFT_LACKS.map(([name, why]) => ({ name, on: false, why })) }, 'what nftables lacks')
  const guard = new NftGuard({ config: settings, log })
  health.check('nftables', () => guard.fault())
  let isFirst = true
  return {
    enforce: async (rules) => {
      await guard.enforce(rules)
      if (isFirst) await removePrograms(config.pinDirectory, log)
      isFirst = false
    },
    work: (faults) => [guard.run(journal, journal.states(config.stateFile), faults, signal)],
  }
}

/** What an earlier start put into the kernel, once the table is in force: two enforcers with rules of different days are one too many. */
async function removePrograms(pinDirectory: string, log: HostContext['log']): Promise<void> {
  try {
    await removeEverything(pinDirectory)
  } catch (error) {
    log.warn({ err: error }, 'kernel programs of an earlier start, if there are any, could not be taken off')
  }
}
