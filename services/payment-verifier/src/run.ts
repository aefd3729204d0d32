import type { AddressInfo } from 'node:net'
import { parseAccountKey } from '@tollward/bitcoin'
import { connectBus } from '@tollward/bus'
import { ConductService, TreasuryService, VerifierService } from '@tollward/contracts/payment'
import { IntrospectorService } from '@tollward/contracts/token'
import { openPossession } from '@tollward/decision'
import { AppError } from '@tollward/errors'
import { aborted, readSecretFile, type ServiceContext } from '@tollward/runtime'
import { announce } from './adapters/announcer.ts'
import { callerCheck } from './adapters/caller.ts'
import { Chain } from './adapters/chain.ts'
import { followConduct } from './adapters/conduct-feeds.ts'
import { conductService } from './adapters/conduct-service.ts'
import { Conducts } from './adapters/conducts.ts'
import { createHttp } from './adapters/http.ts'
import { LedgerBook } from './adapters/ledger.ts'
import { Passes } from './adapters/passes.ts'
import { followPlans } from './adapters/plans.ts'
import { openSources } from './adapters/sources.ts'
import { treasury } from './adapters/treasury.ts'
import { verifier } from './adapters/verifier.ts'
import type { Config } from './config.ts'
import type { Applied } from './domain/ledger.ts'
import { registerGauges, verifierMetrics } from './metrics.ts'

/** Invoices, the chain, passes. */
export async function run({ name, config, log, registry, health, signal }: ServiceContext<Config>): Promise<void> {
  await using resources = new AsyncDisposableStack()
  const { network, publicUrl, nodeSilentMaxMs, openInvoicesMax, selfRegisteredOpenInvoicesMax, invoicesPerMinute } =
    config
  const { leaseLastsMs } = config
  const account = parseAccountKey(config.accountKey, network)
  const accountBirthday = birthdayOf(config)
  const source = resources.use(openSources(config, { log, signal }))
  const metrics = verifierMetrics(registry)

  const nkeySeed = config.natsNkeyFile === undefined ? {} : { nkeySeed: readSecretFile(config.natsNkeyFile) }
  const bus = resources.use(await connectBus({ servers: config.natsUrl, name, ...nkeySeed, log, registry }))
  health.check('bus', () => (bus.connected ? undefined : 'the connection to NATS is lost'))

  const plans = resources.use(await followPlans(bus, metrics, log))
  let onApplied = (_applied: Applied) => {}
  const book = resources.use(await LedgerBook.open(bus, metrics, (applied) => onApplied(applied)))
  const passes = resources.use(await Passes.open({ bus, book, metrics, leaseLastsMs }))
  const conducts = resources.use(await Conducts.open(bus, book.ledger, metrics))

  const chain = resources.use(
    await Chain.open({ source, account, accountBirthday, book, passes, metrics, log, signal }),
  )
  onApplied = ({ opened, restored }) => {
    if (restored) void chain.startOver()
    if (opened !== undefined) void chain.extendAddresses()
    // Another replica gave the address out before we knew of it: its payment may be in a block that we looked through already.
    const tipHeight = chain.follower.tip?.height ?? 0
    if (opened !== undefined && opened.tipHeight < tipHeight) chain.follower.rescan(opened.tipHeight + 1)
  }
  health.check('chain', () => {
    const trouble = chain.trouble(nodeSilentMaxMs)
    return trouble && [trouble, ...(chain.reason === undefined ? [] : [chain.reason])].join(': ')
  })
  registerGauges(registry, {
    tipHeight: () => chain.follower.tip?.height ?? 0,
    nodeSilentForMs: () => chain.follower.silentForMs,
    nodes: () => source.states,
    ledgerSequence: () => book.ledger.sequence,
    unknownEntries: () => book.ledger.unknownEntries,
    nextAddressIndex: () => book.ledger.nextAddressIndex,
    conducts: () => conducts.size,
  })

  for (const announcer of await announce(bus, book, passes)) resources.use(announcer)
  resources.use(
    bus.serve(
      VerifierService,
      verifier({ book, chain, passes, plans, conducts, publicUrl, metrics, network, nodeSilentMaxMs, leaseLastsMs }),
    ),
  )
  resources.use(bus.serve(TreasuryService, treasury({ book, chain, passes, account, nodeSilentMaxMs })))
  for (const feed of await followConduct(bus, conducts, metrics)) resources.use(feed)
  const tipHeight = () => chain.follower.tip?.height ?? 0
  resources.use(bus.serve(ConductService, conductService({ conducts, ledger: book.ledger, tipHeight })))
  const introspector = bus.client(IntrospectorService)
  const authenticate = callerCheck({ introspector, possession: openPossession(), publicUrl })
  const http = createHttp({
    book,
    chain,
    passes,
    plans,
    conducts,
    account,
    authenticate,
    metrics,
    log,
    publicUrl,
    limits: { openInvoicesMax, invoicesPerMinute },
    selfRegisteredLimits: { openInvoicesMax: selfRegisteredOpenInvoicesMax, invoicesPerMinute },
    nodeSilentMaxMs,
  })
  resources.defer(() => http.close())
  await http.listen({ host: config.listenHost, port: config.listenPort })

  health.ready()
  log.info({ network, port: (http.server.address() as AddressInfo).port }, 'ready')
  await Promise.race([aborted(signal), chain.follower.failed])
}

/** A new account on a chain of one's own cannot be older than the chain; of others nobody wants to look through all. */
function birthdayOf({ accountBirthday, network }: Config): number {
  if (accountBirthday !== undefined) return accountBirthday
  if (network === 'regtest') return 0
  throw new AppError(
    'invalid_argument',
    `Give TOLLWARD_ACCOUNT_BIRTHDAY on ${network}: the height of the first block that can pay the account; for a new account that of the best block now.`,
  )
}
