import { nodeClient } from '@tollward/bitcoin'
import { connectBus } from '@tollward/bus'
import { aborted, readSecretFile, type ServiceContext } from '@tollward/runtime'
import { Apis, apiMethods, apiWatcher } from './adapters/apis.ts'
import { blockMethods } from './adapters/blocks.ts'
import { adminHandlers } from './adapters/calls.ts'
import { conductMethods } from './adapters/conduct.ts'
import { documentMethods } from './adapters/documents.ts'
import { flowWatcher, observationMethods } from './adapters/observations.ts'
import { paymentMethods } from './adapters/payments.ts'
import { peopleMethods } from './adapters/people.ts'
import { registrationMethods } from './adapters/registrations.ts'
import { regtestMethods } from './adapters/regtest.ts'
import { sensorMethods } from './adapters/sensors.ts'
import { listenGrpc } from './adapters/server.ts'
import { statusMethods } from './adapters/status.ts'
import { tokenMethods } from './adapters/tokens.ts'
import { ledgerExporter, treasuryMethods } from './adapters/treasury.ts'
import type { Config } from './config.ts'
import { adminMetrics } from './metrics.ts'

/** Wires admin-api and runs it until the signal is aborted. */
export async function run({ name, config, log, registry, health, signal }: ServiceContext<Config>): Promise<void> {
  const metrics = adminMetrics(registry)
  await using bus = await connectBus({
    servers: config.natsUrl,
    name,
    ...(config.natsNkeyFile === undefined ? {} : { nkeySeed: readSecretFile(config.natsNkeyFile) }),
    log,
    registry,
  })
  health.check('bus', () => (bus.connected ? undefined : 'is not connected'))

  const guarded = { addresses: config.guardedAddresses, managementPorts: config.managementPorts }
  await using apis = new Apis(bus)
  const methods = {
    ...statusMethods(config.services),
    ...documentMethods({ bus, guarded, metrics, log }),
    ...registrationMethods(bus),
    ...tokenMethods(bus),
    ...peopleMethods(bus),
    ...paymentMethods(bus),
    ...treasuryMethods(bus),
    ...conductMethods(bus),
    ...blockMethods(bus, config.guardedAddresses),
    ...observationMethods(bus),
    ...apiMethods(apis),
    ...sensorMethods(bus),
    ...regtestMethods(regtestNode(config)),
  }
  const streams = {
    watchFlows: flowWatcher(bus, metrics),
    watchApis: apiWatcher(apis),
    exportLedger: ledgerExporter(bus),
  }
  const handlers = adminHandlers({ bus, methods, streams, metrics, log, signal })
  await using server = await listenGrpc(handlers, { host: config.listenHost, port: config.listenPort })

  health.ready()
  log.info({ host: config.listenHost, port: server.port }, 'ready')
  await aborted(signal)
}

function regtestNode({ bitcoinRpcUrl: url, bitcoinCookieFile: cookieFile }: Config) {
  if (url === undefined) return undefined
  return nodeClient({ url, ...(cookieFile === undefined ? {} : { cookieFile }) })
}
