import type { ConnectedBlock, WatchedOutput } from '@tollward/bitcoin'
import { moneyOf } from './credit.ts'
import type { Invoice, Payment, View } from './invoice.ts'
import { type FoundMoney, type Ledger, outpointKey } from './ledger.ts'

type PaymentState = 'unconfirmed' | 'replaced' | 'confirming' | 'settled' | 'taken-back'

/** A payment, and what became of its money. */
export interface Accounted {
  readonly payment: Payment
  readonly addressIndex: number
  /** Undefined: found money. */
  readonly invoice?: Invoice
  /** Empty: found money that nobody was given. */
  readonly clientId: string
  readonly state: PaymentState
  readonly boughtSats: bigint
  readonly creditedSats: bigint
  readonly heldSats: bigint
}

/** How far a reader of all payments has come: of those to invoices, and of the found money, which comes after them. */
export interface Reading {
  readonly payments: number
  readonly found: number
}

/** The payments after what was read already, at most so many, of one client if one is named; and how far the reader is then. */
export function paymentsFrom(
  ledger: Ledger,
  { payments, found }: Reading,
  size: number,
  clientId: string,
): {
  readonly page: ({ readonly invoice: Invoice; readonly payment: Payment } | FoundMoney)[]
  readonly next: Reading
} {
  const isWanted = (owner: string | undefined) => clientId === '' || owner === clientId
  const page: ({ readonly invoice: Invoice; readonly payment: Payment } | FoundMoney)[] = []
  const next = { payments, found }
  for (const each of skipping(ledger.payments(), payments)) {
    if (page.length === size) return { page, next }
    if (isWanted(each.invoice.clientId)) page.push(each)
    next.payments += 1
  }
  for (const each of skipping(ledger.foundMoney(), found)) {
    if (page.length === size) return { page, next }
    if (isWanted(each.clientId)) page.push(each)
    next.found += 1
  }
  return { page, next }
}

/** What became of a payment to an invoice. The invoice's settled payments fill what it bought, then credit, then what is held. */
export function accountOf(invoice: Invoice, wanted: Payment, view: View): Accounted {
  const { boughtSats, creditedSats, heldSats } = moneyOf(invoice, view)
  const left = { boughtSats, creditedSats, heldSats }
  const settled = [...invoice.payments.values()]
    .filter((payment) => stateOf(payment, invoice.confirmationsNeeded, view) === 'settled')
    .toSorted((one, other) => (one.block?.height ?? 0) - (other.block?.height ?? 0))
  const shares = settled.map((payment) => ({ payment, share: takenFrom(left, payment.amountSats) }))
  const share = shares.find(({ payment }) => payment === wanted)?.share
  return {
    payment: wanted,
    addressIndex: invoice.addressIndex,
    invoice,
    clientId: invoice.clientId,
    state: stateOf(wanted, invoice.confirmationsNeeded, view),
    ...(share ?? { boughtSats: 0n, creditedSats: 0n, heldSats: 0n }),
  }
}

/** What became of found money: it is held until an operator makes it a client's credit. */
export function accountOfFound({ payment, addressIndex, clientId = '' }: FoundMoney, view: View): Accounted {
  const state = stateOf(payment, 1, view)
  const sats = state === 'settled' ? payment.amountSats : 0n
  const parts = clientId === '' ? { creditedSats: 0n, heldSats: sats } : { creditedSats: sats, heldSats: 0n }
  return { payment, addressIndex, clientId, state, boughtSats: 0n, ...parts }
}

type DifferenceKind = 'missing-in-ledger' | 'missing-on-chain' | 'amount-differs' | 'block-differs'

/** An output of which chain and ledger say different things. */
export interface Difference {
  readonly kind: DifferenceKind
  readonly txid: string
  readonly vout: number
  /** 0: the chain, or the ledger, has no such output in these blocks. */
  readonly chainSats: bigint
  readonly ledgerSats: bigint
  readonly blockHeight: number
  readonly addressIndex: number
}

/** What some blocks pay to the account, by the chain and by the ledger. */
export interface Comparison {
  readonly chainSats: bigint
  readonly ledgerSats: bigint
  readonly differences: readonly Difference[]
}

/** A block of the chain with every output that pays the account. */
export type PaidBlock = Pick<ConnectedBlock, 'hash' | 'height' | 'outputs'>

/**
 * Compares blocks of the best chain that follow one another with what the ledger says of the same heights. `indexOf` tells the
 * address index of a script of the account.
 */
export function compare(
  blocks: readonly PaidBlock[],
  ledger: Ledger,
  indexOf: (script: string) => number | undefined,
): Comparison {
  const onChain = new Map(
    blocks.flatMap((block) => block.outputs.map((output) => [outpointKey(output), { output, block }] as const)),
  )
  const heights = { from: blocks[0]?.height ?? 0, until: blocks.at(-1)?.height ?? -1 }
  const inLedger = moneyAt(ledger, heights)
  const differences: Difference[] = []
  for (const { output, block } of onChain.values()) {
    const difference = differenceOf(output, block, ledger)
    if (difference !== undefined) differences.push({ ...difference, addressIndex: indexOf(output.script) ?? 0 })
  }
  for (const { payment, addressIndex } of inLedger) {
    if (onChain.has(outpointKey(payment))) continue
    const { txid, vout, amountSats, block } = payment
    const where = { txid, vout, blockHeight: block?.height ?? 0, addressIndex }
    differences.push({ kind: 'missing-on-chain', ...where, chainSats: 0n, ledgerSats: amountSats })
  }
  return {
    chainSats: sumOf([...onChain.values()].map(({ output }) => output)),
    ledgerSats: sumOf(inLedger.map(({ payment }) => payment)),
    differences,
  }
}

function differenceOf(
  { txid, vout, amountSats }: WatchedOutput,
  { hash, height }: PaidBlock,
  ledger: Ledger,
): Omit<Difference, 'addressIndex'> | undefined {
  const known = [...ledger.paymentsOf(txid)].find(({ payment }) => payment.vout === vout)?.payment
  const where = { txid, vout, chainSats: amountSats, blockHeight: height }
  if (known === undefined) return { kind: 'missing-in-ledger', ...where, ledgerSats: 0n }
  if (known.amountSats !== amountSats) return { kind: 'amount-differs', ...where, ledgerSats: known.amountSats }
  return known.block?.hash === hash ? undefined : { kind: 'block-differs', ...where, ledgerSats: known.amountSats }
}

function moneyAt(ledger: Ledger, { from, until }: { from: number; until: number }) {
  return [...ledger.paidBlocks()]
    .filter(({ height }) => height >= from && height <= until)
    .flatMap(({ hash }) => ledger.paymentsIn(hash))
    .map(({ invoice, payment }) => {
      const addressIndex = invoice?.addressIndex ?? ledger.found(outpointKey(payment))?.addressIndex ?? 0
      return { payment, addressIndex }
    })
}

function stateOf({ block, replacedBy, takenBack }: Payment, confirmationsNeeded: number, view: View): PaymentState {
  if (replacedBy !== undefined) return 'replaced'
  if (block === undefined) return takenBack ? 'taken-back' : 'unconfirmed'
  return view.tipHeight - block.height + 1 >= confirmationsNeeded ? 'settled' : 'confirming'
}

interface Shares {
  boughtSats: bigint
  creditedSats: bigint
  heldSats: bigint
}

/** Takes an amount from what is left: first of what was bought. */
function takenFrom(left: Shares, amountSats: bigint): Shares {
  let rest = amountSats
  const take = (kind: keyof Shares) => {
    const isLast = rest < left[kind]
    const sats = isLast ? rest : left[kind]
    left[kind] -= sats
    rest -= sats
    return sats
  }
  return { boughtSats: take('boughtSats'), creditedSats: take('creditedSats'), heldSats: take('heldSats') }
}

function sumOf(amounts: readonly { readonly amountSats: bigint }[]): bigint {
  return amounts.reduce((sum, { amountSats }) => sum + amountSats, 0n)
}

function* skipping<T>(all: Iterable<T>, count: number): Iterable<T> {
  let index = 0
  for (const each of all) {
    if (index >= count) yield each
    index += 1
  }
}
