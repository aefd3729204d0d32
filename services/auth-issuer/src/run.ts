import { connectBus } from '@tollward/bus'
import { IssuerService, KeyService } from '@tollward/contracts/token'
import { aborted, readSecretFile, type ServiceContext } from '@tollward/runtime'
import { clientAuthenticationPart } from './adapters/client-authentication.ts'
import { openClients } from './adapters/clients.ts'
import { dpopPart, openReplays } from './adapters/dpop.ts'
import { readOperatorClient } from './adapters/files.ts'
import { listenHttp, listenHttps } from './adapters/http.ts'
import { currentProvider, keysPart } from './adapters/keys/current-provider.ts'
import { openKeyRing } from './adapters/keys/key-ring.ts'
import { keyService } from './adapters/keys/key-service.ts'
import { readMasterSecret } from './adapters/master-secret.ts'
import { mtlsPart, readMtls } from './adapters/mtls.ts'
import { createProvider } from './adapters/provider.ts'
import { issuerService } from './adapters/rpc.ts'
import { openTokens } from './adapters/tokens.ts'
import type { Config } from './config.ts'
import { ID_TOKEN_LIFETIME_MAX_SECONDS } from './domain/token.ts'
import { issuerMetrics } from './metrics.ts'

/** Wires auth-issuer and runs it until the signal is aborted. */
export async function run({ name, config, log, registry, health, signal }: ServiceContext<Config>): Promise<void> {
  const issuer = config.issuerUrl
  const metrics = issuerMetrics(registry)
  const masterSecret = readMasterSecret(config.masterSecretFile)
  const mtls = readMtls(config)
  const operator = config.operatorClientFile === undefined ? undefined : readOperatorClient(config.operatorClientFile)

  await using bus = await connectBus({
    servers: config.natsUrl,
    name,
    ...(config.natsNkeyFile === undefined ? {} : { nkeySeed: readSecretFile(config.natsNkeyFile) }),
    log,
    registry,
  })
  health.check('bus', () => (bus.connected ? undefined : 'is not connected'))

  await using keys = await openKeyRing({
    bus,
    masterSecret,
    rotationIntervalMs: config.keyRotationInterval,
    maxAgeMs: config.jwksMaxAge,
    tokenLifetimeMs: ID_TOKEN_LIFETIME_MAX_SECONDS * 1000,
    metrics,
    log,
  })
  health.check('keys', () => keys.fault())
  await using _keyRpc = bus.serve(KeyService, keyService(keys))

  const clients = openClients({ bus, issuer, operator, log })
  const tokens = openTokens(bus, metrics)
  const { introspectionUrl } = config
  const replays = openReplays(bus)
  const { provider, listener } = currentProvider(keys, () => {
    const parts = [keysPart(keys), clientAuthenticationPart(issuer), dpopPart(masterSecret, replays), mtlsPart(mtls)]
    return createProvider({ issuer, bus, masterSecret, introspectionUrl, clients, tokens, parts, metrics, log })
  })
  await using _rpc = bus.serve(IssuerService, issuerService({ issuer, provider, keys, clients, tokens, metrics }))
  await using server = await listenHttp(listener, config.listenHost, config.listenPort)
  await using _mtlsServer = mtls && (await listenHttps(listener, mtls, config.listenHost, config.mtlsListenPort))

  health.ready()
  log.info({ issuer, host: config.listenHost, port: server.port }, 'ready')
  await aborted(signal)
}
