import { connectBus } from '@tollward/bus'
import { IssuerService } from '@tollward/contracts/token'
import { aborted, readSecretFile, type ServiceContext } from '@tollward/runtime'
import { openClients } from './adapters/clients.ts'
import { readOperatorClient, readSigningKeys } from './adapters/files.ts'
import { listenHttp } from './adapters/http.ts'
import { readMasterSecret } from './adapters/master-secret.ts'
import { createProvider } from './adapters/provider.ts'
import { issuerService } from './adapters/rpc.ts'
import { openTokens } from './adapters/tokens.ts'
import type { Config } from './config.ts'
import { issuerMetrics } from './metrics.ts'

/** Wires auth-issuer and runs it until the signal is aborted. */
export async function run({ name, config, log, registry, health, signal }: ServiceContext<Config>): Promise<void> {
  const issuer = config.issuerUrl
  const metrics = issuerMetrics(registry)
  const keys = await readSigningKeys(config.jwksFile)
  const masterSecret = readMasterSecret(config.masterSecretFile)
  const operator = config.operatorClientFile === undefined ? undefined : readOperatorClient(config.operatorClientFile)

  await using bus = await connectBus({
    servers: config.natsUrl,
    name,
    ...(config.natsNkeyFile === undefined ? {} : { nkeySeed: readSecretFile(config.natsNkeyFile) }),
    log,
    registry,
  })
  health.check('bus', () => (bus.connected ? undefined : 'is not connected'))

  const clients = openClients({ bus, issuer, operator, log })
  const tokens = openTokens(bus, metrics)
  const provider = createProvider({
    issuer,
    bus,
    masterSecret,
    introspectionUrl: config.introspectionUrl,
    keys,
    clients,
    tokens,
    parts: [],
    metrics,
    log,
  })
  await using _rpc = bus.serve(IssuerService, issuerService({ issuer, provider, keys, clients, tokens, metrics }))
  await using server = await listenHttp(provider.callback(), config.listenHost, config.listenPort)

  health.ready()
  log.info({ issuer, host: config.listenHost, port: server.port }, 'ready')
  await aborted(signal)
}
