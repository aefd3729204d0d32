import { connectBus } from '@tollward/bus'
import { GrantService, IssuerService, KeyService, RegistrationService, UserService } from '@tollward/contracts/token'
import { aborted, readSecretFile, type ServiceContext } from '@tollward/runtime'
import { beginningsPart } from './adapters/beginnings.ts'
import { clientAuthenticationPart } from './adapters/client-authentication.ts'
import { openClients } from './adapters/clients.ts'
import { dpopPart, openReplays } from './adapters/dpop.ts'
import { readOperatorClient } from './adapters/files.ts'
import { grantService } from './adapters/grant-service.ts'
import { listenHttp, listenHttps } from './adapters/http.ts'
import { currentListener, keysPart } from './adapters/keys/current-provider.ts'
import { openKeyRing } from './adapters/keys/key-ring.ts'
import { keyService } from './adapters/keys/key-service.ts'
import { readMasterSecret } from './adapters/master-secret.ts'
import { mtlsPart, readMtls } from './adapters/mtls.ts'
import { openAccounts } from './adapters/people/accounts.ts'
import { openAttempts } from './adapters/people/attempts.ts'
import { peoplePart } from './adapters/people/part.ts'
import { openPasswords } from './adapters/people/passwords.ts'
import { userService } from './adapters/people/user-service.ts'
import { createProvider } from './adapters/provider.ts'
import { openInitialTokens } from './adapters/registration/initial-tokens.ts'
import { registrationPart } from './adapters/registration/part.ts'
import { consumePasses } from './adapters/registration/passes.ts'
import { openRegistrations } from './adapters/registration/registrations.ts'
import { registrationService } from './adapters/registration/service.ts'
import { issuerService } from './adapters/rpc.ts'
import { openStores } from './adapters/stores.ts'
import { tokenExchangePart } from './adapters/token-exchange.ts'
import type { Config } from './config.ts'
import { KEY_RETENTION_MS } from './domain/token.ts'
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
    retentionMs: KEY_RETENTION_MS,
    metrics,
    log,
  })
  health.check('keys', () => keys.fault())
  await using _keyRpc = bus.serve(KeyService, keyService(keys))

  const { selfRegistration, trustedProxies } = config
  const selfRegisteredMax = selfRegistration?.clientsMax ?? 0
  await using registrations = await openRegistrations({ bus, issuer, selfRegisteredMax, metrics })
  const initialTokens = openInitialTokens(bus)
  await using _registrationRpc = bus.serve(RegistrationService, registrationService({ registrations, initialTokens }))
  await using _passes = await consumePasses(bus, registrations)
  const attempts = openAttempts({ bus, masterSecret })

  await using clients = await openClients({ bus, issuer, operator, registrations, log })
  const accounts = openAccounts({ bus, passwords: openPasswords(metrics), metrics })
  const stores = openStores({ bus, masterSecret, clients, accounts, metrics })
  const { introspectionUrl } = config
  const replays = openReplays(bus)
  const beginnings = beginningsPart({ trustedProxies, metrics })
  const listener = currentListener(keys, () => {
    const parts = [
      keysPart(keys),
      tokenExchangePart({ issuer, keys, stores, metrics }),
      clientAuthenticationPart(issuer),
      dpopPart(masterSecret, replays),
      mtlsPart(mtls),
      registrationPart({
        issuer,
        registrations,
        initialTokens,
        selfRegistration,
        attempts,
        trustedProxies,
        metrics,
        log,
      }),
      peoplePart({ issuer, stores, accounts, attempts, trustedProxies, metrics, log }),
      beginnings,
    ]
    return createProvider({ issuer, introspectionUrl, stores, parts, metrics, log })
  })
  await using _rpc = bus.serve(IssuerService, issuerService({ issuer, keys, stores, accounts, metrics }))
  await using _grantRpc = bus.serve(GrantService, grantService(stores))
  await using _userRpc = bus.serve(UserService, userService(accounts))
  await using server = await listenHttp(listener, config.listenHost, config.listenPort)
  await using _mtlsServer = mtls && (await listenHttps(listener, mtls, config.listenHost, config.mtlsListenPort))

  health.ready()
  log.info({ issuer, host: config.listenHost, port: server.port }, 'ready')
  await aborted(signal)
}
