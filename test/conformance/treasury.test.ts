import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { RedeemOutcome, TreasuryService } from '@tollward/contracts/payment'
import { type Bitcoind, eventually, requires, startBitcoind, temporaryDirectory } from '@tollward/testkit'
import { type OpenedInvoice, PATIENCE_MS, startTreasurerStack, type TreasurerStack } from './treasurer.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })

const SATS_PER_BTC = 100_000_000

interface Books {
  readonly receivedSats: number
  readonly boughtSats: number
  readonly creditedSats: number
  readonly unclaimedSats: number
  readonly creditLeftSats: number
  readonly nextAddressIndex: number
  readonly descriptor: string
  readonly tipHeight: number
}

interface Reconciled {
  readonly accountedFor: boolean
  readonly chainSats: number
  readonly ledgerSats: number
  readonly untilHeight: number
  readonly differences: readonly { readonly kind: string; readonly txid: string }[]
  readonly books: Books
}

interface Row {
  readonly txid: string
  readonly vout: number
  readonly clientId: string
  readonly state: string
  readonly amountSats: number
  readonly boughtSats: number
  readonly creditedSats: number
  readonly heldSats: number
}

let node: Bitcoind
let accountKey: string

before(async () => {
  if (skip !== false) return
  node = await startBitcoind()
  accountKey = await treasurersAccount(node)
})
after(() => node?.[Symbol.asyncDispose]())

/** A call to another wallet of the node than the miner's. */
async function walletCall<T>(wallet: string, method: string, params: readonly unknown[] = []): Promise<T> {
  const response = await fetch(`${node.rpcUrl}/wallet/${wallet}`, {
    method: 'POST',
    headers: { authorization: `Basic ${Buffer.from(await readFile(node.cookieFile)).toString('base64')}` },
    body: JSON.stringify({ jsonrpc: '2.0', id: 1, method, params }),
  })
  const { result, error } = (await response.json()) as { result: T; error?: { message: string } }
  if (error) throw new Error(`${method}: ${error.message}`)
  return result
}

/** The account of a treasurer's own wallet: its private keys never leave it. */
async function treasurersAccount({ rpc }: Bitcoind): Promise<string> {
  const wallet = `treasurer-${randomUUID()}`
  await rpc('createwallet', [wallet])
  const { descriptors } = await walletCall<{ descriptors: { desc: string; internal: boolean }[] }>(
    wallet,
    'listdescriptors',
  )
  const external = descriptors.find(({ desc, internal }) => desc.startsWith('wpkh(') && !internal)
  assert.ok(external)
  return external.desc
}

/** What a wallet finds that is given nothing but the descriptor and the address index of the books. */
async function recoveredSats({ descriptor, nextAddressIndex }: Books): Promise<number> {
  const wallet = `recovered-${randomUUID()}`
  await node.rpc('createwallet', [wallet, true])
  const range = [0, nextAddressIndex - 1]
  const imported = await walletCall<{ success: boolean }[]>(wallet, 'importdescriptors', [
    [{ desc: descriptor, range, timestamp: 0 }],
  ])
  assert.deepEqual(
    imported.map(({ success }) => success),
    [true],
  )
  return Math.round((await walletCall<number>(wallet, 'getbalance')) * SATS_PER_BTC)
}

/** Pays an invoice and waits until it is what it should be. */
async function paid(
  stack: TreasurerStack,
  client: string,
  sats: bigint,
  state: string,
): Promise<[OpenedInvoice, string]> {
  const invoice = await stack.open(client)
  const txid = await node.pay(invoice.address, sats)
  await node.mine(1)
  await becomes(stack, client, invoice, state)
  return [invoice, txid]
}

async function becomes(stack: TreasurerStack, client: string, { id }: OpenedInvoice, state: string): Promise<void> {
  const isThere = async () => (await stack.stateOf(client, id)) === state
  await eventually(isThere, { what: `the invoice is ${state}`, timeoutMs: PATIENCE_MS })
}

async function redeemed({ verifier }: TreasurerStack, clientId: string, txid: string) {
  const { outcome, pass } = await verifier.redeem({ clientId, plan: 'orders', txid })
  assert.equal(outcome, RedeemOutcome.REDEEMED)
  assert.ok(pass)
  return pass
}

/** A command that must be refused, and what it says. */
async function refused(stack: TreasurerStack, ...args: string[]): Promise<string> {
  const error = await stack.tollward(...args).then(
    () => assert.fail(`${args.join(' ')} succeeded`),
    (thrown: { stderr?: string; stdout?: string }) => thrown,
  )
  return `${error.stderr}${error.stdout}`
}

test('every satoshi is listed with what became of it, and chain, ledger and books agree', { skip }, async () => {
  await using stack = await startTreasurerStack(node, accountKey)
  const [, exact] = await paid(stack, 'ada', 10_000n, 'paid')
  const [, over] = await paid(stack, 'bob', 12_500n, 'overpaid')
  await redeemed(stack, 'ada', exact)
  await redeemed(stack, 'bob', over)
  const rows = await stack.tollward<Row[]>('payments')
  const shown = rows.map(({ txid, clientId, state, amountSats, boughtSats, creditedSats, heldSats }) => [
    ...[txid, clientId, state, amountSats],
    ...[boughtSats, creditedSats, heldSats],
  ])
  assert.deepEqual(shown, [
    [exact, 'ada', 'settled', 10_000, 10_000, 0, 0],
    [over, 'bob', 'settled', 12_500, 10_000, 2_500, 0],
  ])
  assert.deepEqual(
    (await stack.tollward<Row[]>('payments', 'list', '--client', 'bob')).map(({ txid }) => txid),
    [over],
  )
  const books = await stack.tollward<Books>('payments', 'books')
  assert.equal(books.receivedSats, 22_500)
  assert.equal(books.boughtSats, 20_000)
  assert.equal(books.creditLeftSats, 2_500)

  const whole = await stack.tollward<Reconciled>('payments', 'reconcile')
  assert.ok(whole.accountedFor)
  assert.deepEqual([whole.chainSats, whole.ledgerSats, whole.differences], [22_500, 22_500, []])

  assert.equal(await recoveredSats(books), books.receivedSats)

  await stack.tollward('payments', 'credit', 'ada', '700', '--reason', 'an apology')
  await stack.tollward('payments', 'credit', 'bob', '-500', '--reason', 'spent elsewhere')
  const credits = await stack.tollward<{ clientId: string; balanceSats: number }[]>('payments', 'credits')
  assert.deepEqual(
    new Map(credits.map(({ clientId, balanceSats }) => [clientId, balanceSats])),
    new Map([
      ['ada', 700],
      ['bob', 2_000],
    ]),
  )
  assert.ok((await stack.tollward<Reconciled>('payments', 'reconcile')).accountedFor)
})

test('money that the ledger does not know is found missing, and the command fails', { skip }, async () => {
  const { desc } = await walletCallForAccount()
  await using stack = await startTreasurerStack(node, desc)
  const [, txid] = await paid(stack, 'ada', 10_000n, 'paid')
  // Index 0 was given out by somebody else before; the ledger began after this block.
  const { chainSats, accountedFor } = await stack.tollward<Reconciled>('payments', 'reconcile')
  assert.deepEqual([chainSats, accountedFor], [10_000, true])
  const report = await refused(stack, 'payments', 'reconcile', '--from', '0')
  const found: Reconciled = JSON.parse(report)
  assert.equal(found.accountedFor, false)
  assert.deepEqual(
    found.differences.map(({ kind }) => kind),
    ['missing-in-ledger'],
  )
  assert.notEqual(found.differences[0]?.txid, txid)
})

/** An account of which an address was paid before any ledger began. */
async function walletCallForAccount(): Promise<{ desc: string }> {
  const desc = await treasurersAccount(node)
  const [first] = await node.rpc<string[]>('deriveaddresses', [desc, [0, 0]])
  await node.pay(first ?? '', 33_000n)
  await node.mine(1)
  return { desc }
}

test('a back-up comes back on a new machine, with credit, passes and addresses, and what came in since is found', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  const file = join(directory.path, 'ledger.backup')
  const account = await treasurersAccount(node)
  const before = await backedUp(account, file)

  await using stack = await startTreasurerStack(node, account)
  const restored = await stack.tollward<Reconciled>('restore', file)
  assert.ok(restored.accountedFor)
  assert.equal(restored.books.receivedSats, before.books.receivedSats + 10_000 + 20_000)
  await becomes(stack, 'bob', before.unpaid, 'paid')

  const pass = await redeemed(stack, 'ada', before.txid)
  assert.equal(pass.passId, before.passId)
  assert.equal(pass.leasedRequests, before.leasedRequests)
  const credits = await stack.tollward<{ clientId: string; balanceSats: number }[]>('payments', 'credits')
  assert.deepEqual(
    credits.map(({ clientId, balanceSats }) => [clientId, balanceSats]),
    [['ada', 700]],
  )

  assert.equal(restored.books.unclaimedSats, 20_000)
  const lost = (await stack.tollward<Row[]>('payments')).find(({ amountSats }) => amountSats === 20_000)
  assert.deepEqual([lost?.clientId, lost?.state, lost?.heldSats], ['', 'settled', 20_000])
  const outpoint = `${lost?.txid}:${lost?.vout}`
  const report = await refused(stack, 'payments', 'credit', 'eve', '1', '--reason', 'found', '--for', outpoint)
  assert.match(report, /holds 20000 sats: give all of it/)
  await stack.tollward('payments', 'credit', 'eve', '20000', '--reason', 'her invoice was lost', '--for', outpoint)
  const again = await stack.tollward<Reconciled>('payments', 'reconcile')
  assert.deepEqual([again.accountedFor, again.books.unclaimedSats], [true, 0])
})

/** A stack with payments, credit and a pass in use, backed up and then lost; after the back-up two invoices were paid. */
async function backedUp(account: string, file: string) {
  await using stack = await startTreasurerStack(node, account)
  const [, txid] = await paid(stack, 'ada', 10_000n, 'paid')
  const { passId } = await redeemed(stack, 'ada', txid)
  await stack.verifier.lease({ passId, holder: 'gateway', wantedRequests: 40 })
  await stack.tollward('payments', 'credit', 'ada', '700', '--reason', 'an apology')
  const unpaid = await stack.open('bob')
  const made = await stack.tollward<{ passes: number; nextAddressIndex: number }>('backup', file)
  assert.deepEqual([made.passes, made.nextAddressIndex], [1, 2])
  assert.equal((await stat(file)).mode & 0o777, 0o600)
  assert.match(await refused(stack, 'backup', file), /is there already/)
  const books = await stack.tollward<Books>('payments', 'books')
  const { leasedRequests } = await redeemed(stack, 'ada', txid)
  const lost = await stack.open('eve')
  await stack[Symbol.asyncDispose]()
  await node.pay(unpaid.address, 10_000n)
  await node.pay(lost.address, 20_000n)
  await node.mine(1)
  return { txid, passId, leasedRequests, books, unpaid }
}

test('a back-up is refused where it is damaged, of another account, or the ledger has entries; an interrupted restore goes on', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  const file = join(directory.path, 'ledger.backup')
  const account = await treasurersAccount(node)
  const { nextAddressIndex } = (await backedUp(account, file)).books
  const text = await readFile(file, 'utf8')

  await using other = await startTreasurerStack(node, accountKey)
  assert.match(await refused(other, 'restore', file), /of another network or account/)

  await using stack = await startTreasurerStack(node, account)
  const cut = join(directory.path, 'cut')
  await writeFile(cut, text.split('\n').slice(0, -2).join('\n'))
  assert.match(await refused(stack, 'restore', cut), /no whole back-up/)
  const changed = join(directory.path, 'changed')
  await writeFile(changed, text.replace('"tollwardBackup":1', '"tollwardBackup":1 '))
  assert.match(await refused(stack, 'restore', changed), /no whole back-up/)

  const entries = text
    .split('\n')
    .flatMap((line) => (line.includes('"entry"') ? [JSON.parse(line).entry as string] : []))
  const { descriptor } = JSON.parse(text.split('\n')[0] ?? '') as { descriptor: string }
  const treasury = stack.bus.client(TreasuryService, { timeoutMs: 10_000 })
  const part = { network: 'regtest', descriptor, nextAddressIndex, entriesTotal: BigInt(entries.length) }
  const some = entries.slice(0, 2).map((entry) => Buffer.from(entry, 'base64'))
  assert.equal((await treasury.importLedger({ ...part, fromSequence: 1n, entries: some })).nextSequence, 3n)
  const skipped = treasury.importLedger({ ...part, fromSequence: 4n, entries: some })
  await assert.rejects(skipped, { message: 'Entry 3 of the back-up is wanted next.' })
  await stack.paymentVerifier.kill()
  const ready = stack.paymentVerifier.start()
  const whole = await eventually(() => stack.tollward<Reconciled>('restore', file), {
    what: 'the restore goes on',
    timeoutMs: PATIENCE_MS,
  })
  assert.ok(whole.accountedFor)
  await ready
  assert.ok(
    (await stack.tollward<Reconciled>('restore', file)).accountedFor,
    'a restore that is repeated changes nothing',
  )

  const { address } = await stack.open('ada')
  const given = await node.rpc<string[]>('deriveaddresses', [account, [0, nextAddressIndex + 999]])
  assert.ok(!given.includes(address), 'an address that may have been given out is given out again')
  const later = join(directory.path, 'later')
  await stack.tollward('backup', later)
  assert.match(await refused(stack, 'restore', later), /entries that are not in this back-up/)
})
