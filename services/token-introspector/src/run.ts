import { connectBus } from '@tollward/bus'
import { IntrospectorService, IssuerService } from '@tollward/contracts/token'
import { followRevocations, INTROSPECTOR_STALE_AFTER_MS } from '@tollward/decision'
import { aborted, readSecretFile, type ServiceContext } from '@tollward/runtime'
import { openCallers } from './adapters/callers.ts'
import { listenHttp } from './adapters/http.ts'
import { openLookup } from './adapters/lookup.ts'
import type { Config } from './config.ts'
import { gaugeState, introspectorMetrics } from './metrics.ts'

/**
 * The longest that an answer of the issuer can be in the cache: the life of an internal token. Revocations from before that
 * are known to the issuer, and an empty cache has nothing from before it was started.
 */
const ENTRY_LIFE_MAX_MS = 60_000

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
  const feedSilentForMs = () => feed.silentForMs
  const lookup = openLookup({ issuer, feedSilentForMs, metrics })
  const callers = openCallers({ issuer, feedSilentForMs, metrics })
  await using feed = await followRevocations(bus, Date.now() - ENTRY_LIFE_MAX_MS, (keyOrTag, kind) => {
    metrics.revocations.inc({ of: kind })
    lookup.forget(keyOrTag)
    callers.forget(keyOrTag)
  })
  gaugeState(registry, { entries: () => lookup.size, feedSilentForMs })
  health.check('revocation feed', () => {
    const silentForMs = feedSilentForMs()
    return silentForMs > INTROSPECTOR_STALE_AFTER_MS ? `silent for ${Math.round(silentForMs / 1000)} s` : undefined
  })

  await using _rpc = bus.serve(IntrospectorService, {
    introspect: async ({ token, pastCache }) => ({ info: await lookup.introspect(token, { pastCache }) }),
  })
  const { issuerUrl, listenHost, listenPort } = config
  const http = { lookup, callers, issuer, issuerUrl, metrics, log }
  await using server = await listenHttp(http, listenHost, listenPort)

  health.ready()
  log.info({ host: listenHost, port: server.port }, 'ready')
  await aborted(signal)
}
