import { connectBus } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { ClientRevokedSchema, IntrospectorService, IssuerService, TokenRevokedSchema } from '@tollward/contracts/token'
import { aborted, readSecretFile, type ServiceContext } from '@tollward/runtime'
import { createHttp } from './adapters/http.ts'
import { FEED_SILENCE_MAX_MS, openLookup } from './adapters/lookup.ts'
import type { Config } from './config.ts'
import { introspectorMetrics } from './metrics.ts'

/**
 * The longest that an answer of the issuer can be in the cache: the life of an internal token. Revocations from before that
 * are known to the issuer, and an empty cache has nothing from before it was started.
 */
const ENTRY_LIFE_MAX_MS = 60_000

const FEED_CHECK_INTERVAL_MS = 1000

/** Wires token-introspector and runs it until the signal is aborted. */
export async function run({ name, config, log, registry, health, signal }: ServiceContext<Config>): Promise<void> {
  const metrics = introspectorMetrics(registry)
  await using bus = await connectBus({
    servers: config.natsUrl,
    name,
    ...(config.natsNkeyFile === undefined ? {} : { nkeySeed: readSecretFile(config.natsNkeyFile) }),
    log,
    registry,
  })
  health.check('bus', () => (bus.connected ? undefined : 'is not connected'))

  const issuer = bus.client(IssuerService)
  const feedSilentForMs = () => Math.max(...feeds.map(({ silentForMs }) => silentForMs))
  const lookup = openLookup({ issuer, feedSilentForMs, metrics })
  const since = { timeMs: Date.now() - ENTRY_LIFE_MAX_MS }
  await using tokenFeed = await bus.follow(contract(TokenRevokedSchema), since, ({ tokenHash }) =>
    lookup.tokenRevoked(tokenHash),
  )
  await using clientFeed = await bus.follow(contract(ClientRevokedSchema), since, ({ clientId }) =>
    lookup.clientRevoked(clientId),
  )
  const feeds = [tokenFeed, clientFeed]
  health.check('revocation feed', () => {
    const silentForMs = feedSilentForMs()
    return silentForMs > FEED_SILENCE_MAX_MS ? `silent for ${Math.round(silentForMs / 1000)} s` : undefined
  })
  const feedCheck = setInterval(() => lookup.checkFeed(), FEED_CHECK_INTERVAL_MS)
  await using _feedCheck = { [Symbol.asyncDispose]: async () => clearInterval(feedCheck) }

  await using _rpc = bus.serve(IntrospectorService, {
    introspect: async ({ token }) => ({ info: await lookup.introspect(token) }),
  })
  const authenticate = async (credentials: { clientId: string; clientSecret: string }) =>
    (await issuer.authenticateClient(credentials)).authenticated
  const http = createHttp({ lookup, authenticate, metrics, log })
  await using _http = { [Symbol.asyncDispose]: () => http.close() }
  await http.listen({ host: config.listenHost, port: config.listenPort })

  health.ready()
  log.info({ host: config.listenHost, port: config.listenPort }, 'ready')
  await aborted(signal)
}
