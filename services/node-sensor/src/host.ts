import { aborted, type ServiceContext } from '@tollward/runtime'
import { wantedOf } from './adapters/block-table.ts'
import { defaultInterfaces } from './adapters/default-routes.ts'
import { Journal } from './adapters/journal.ts'
import { addressesToGuard } from './adapters/node.ts'
import { RulesFile } from './adapters/rules-file.ts'
import { reportState } from './adapters/state-report.ts'
import type { HostConfig } from './config.ts'
import { WantedBlocks } from './domain/wanted-blocks.ts'
import { hostMetrics } from './metrics.ts'
import { openSensor } from './sensor.ts'

interface HostContext extends ServiceContext<HostConfig> {
  /** Calls the listener at each SIGHUP from now on. */
  readonly onHangup: (listener: () => void) => void
}

/** The sensor of one host: rules and blocks from a file, and what it sees to the journal. */
export async function runHost({ config, log, registry, health, signal, onHangup }: HostContext): Promise<void> {
  await using resources = new AsyncDisposableStack()
  const { mode, node, guardedAddresses, managementPorts } = config
  const settings = { ...config, interfaces: config.interfaces ?? defaultInterfaces() }
  const metrics = hostMetrics(registry)
  const file: RulesFile = new RulesFile({
    ...{ path: config.rulesFile, keptPath: config.keptRulesFile, metrics, log },
    guarded: () => guardedOf(guardedAddresses, managementPorts),
    enforce: async ({ rules, blocks }) => {
      const wanted = new WantedBlocks()
      for (const block of blocks) wanted.set(block.range, wantedOf(block))
      sensor.table.replace(wanted)
      await sensor.rules.replace(rules)
    },
  })
  const journal = new Journal({ file, metrics, log })
  const sensor = await openSensor({
    ...{ config: settings, log, registry, health, signal, resources, tellsFlows: false },
    onGuardEvent: (event, rule) => journal.packet(event, rule),
  })
  const { table, rules, outbox } = sensor
  health.check('blocks', () => (table.waiting === 0 ? undefined : `${table.waiting} found no room in the kernel`))
  health.check('rules', () => file.fault() ?? rules.fault())
  await file.begin()
  onHangup(() => file.reload())
  health.ready()
  log.info({ interfaces: settings.interfaces, blocks: table.sizes() }, 'ready')
  const faults = () => health.reasons()
  const to = journal.states(config.stateFile)
  const reporting = reportState({ ...sensor, node, mode, faults, to, log, signal })
  await sensor.listing
  const work = [...sensor.work, outbox.run(journal, signal), reporting, file.follow(signal)]
  await Promise.race([aborted(signal), ...work])
  await Promise.all(work)
}

/** What no rule and no block of this host touches. */
export function guardedOf(configured: readonly Uint8Array[], managementPorts: readonly number[]) {
  return { addresses: addressesToGuard(configured).map((address) => ({ address, prefixLength: 128 })), managementPorts }
}
