import type { ChainSource, Spending, Watched, WatchedScripts } from './chain-source.ts'
import { findInTransaction, inputsOfTransaction, type WatchedOutput } from './watched-outputs.ts'

/** A transaction that nobody has any more. */
export interface VanishedTransaction {
  readonly txid: string
  /** A transaction that spends the same coins; undefined: none is known, it only vanished. */
  readonly replacedBy?: string
}

/** What the owner of a mempool watch does with what it finds. */
export interface MempoolHandlers {
  readonly scripts: WatchedScripts
  onMempool(outputs: readonly WatchedOutput[]): Promise<void>
  unconfirmedTxids(): Iterable<string>
  onVanished(transactions: readonly VanishedTransaction[]): Promise<void>
}

/** Transactions of the mempool that one request asks for. */
const TRANSACTIONS_PER_CALL = 100
/** Notices of payments that wait for being handled; beyond, the mempool is read again instead. */
const NOTICES_WAITING_MAX = 10_000
/** Coins of payments that are remembered, oldest forgotten first: of one that is forgotten it is not known what replaced it. */
const INPUTS_KEPT = 100_000

/** The unconfirmed transactions that pay watched scripts: which there are, and which there were. */
export class MempoolWatch {
  /** Something may be in the mempool, or be gone from it, that no notice told of. */
  isDue = true
  readonly #source: ChainSource
  readonly #handlers: MempoolHandlers
  /** Transactions of the mempool that were looked at. */
  #looked = new Set<string>()
  /** Transactions of notices that seem to pay us; the source is asked before anything is made of them. */
  readonly #noticed = new Set<string>()
  /** Coins that payments to us spend, and transactions known to spend them, newest last. */
  readonly #spenders = new Map<string, string[]>()
  readonly #inputs = new Map<string, readonly string[]>()

  constructor(source: ChainSource, handlers: MempoolHandlers) {
    this.#source = source
    this.#handlers = handlers
  }

  /** Coins that payments to us spend: whoever else spends one replaces the payment. */
  get spendings(): Watched['spendings'] {
    return this.#spenders
  }

  /** The mempool is to be looked at as if for the first time. */
  forget(): void {
    this.#looked.clear()
    this.isDue = true
  }

  /** Takes a raw transaction of a notice in; whether it is worth waking up for. Throws RangeError if it is none. */
  notice(raw: Uint8Array): boolean {
    const { outputs, spendings } = findInTransaction(raw, this.#watched)
    const [output] = outputs
    if (spendings.length > 0) this.isDue = true
    if (output !== undefined && this.#noticed.size < NOTICES_WAITING_MAX) this.#noticed.add(output.txid)
    else if (output !== undefined) this.isDue = true
    return output !== undefined || spendings.length > 0
  }

  noteSpendings(spendings: readonly Spending[]): void {
    for (const { outpoint, spentBy } of spendings) {
      const known = this.#spenders.get(outpoint)
      if (known === undefined || known.includes(spentBy)) continue
      if (known.length > 0) this.isDue = true
      known.push(spentBy)
    }
  }

  /** Looks at what notices told of, and if it is due at the whole mempool. `isAtTip`: every block there is was handled. */
  async read(isAtTip: () => Promise<boolean>): Promise<void> {
    const noticed = [...this.#noticed]
    await this.#look(noticed)
    for (const txid of noticed) this.#noticed.delete(txid)
    if (!this.isDue) return
    // What comes while we look is due again.
    this.isDue = false
    try {
      await this.#readAll(isAtTip)
    } catch (error) {
      this.isDue = true
      throw error
    }
  }

  async #readAll(isAtTip: () => Promise<boolean>): Promise<void> {
    const { txids, complete } = await this.#source.unconfirmedIds(this.#handlers.scripts)
    await this.#look(txids.filter((txid) => !this.#looked.has(txid)))
    const present = new Set(txids)
    this.#looked = present.intersection(this.#looked)
    if (complete) await this.#tellVanished(present, isAtTip)
  }

  get #watched(): Watched {
    return { scripts: this.#handlers.scripts, spendings: this.spendings }
  }

  async #look(txids: readonly string[]): Promise<void> {
    for (let start = 0; start < txids.length; start += TRANSACTIONS_PER_CALL) {
      const some = txids.slice(start, start + TRANSACTIONS_PER_CALL)
      const outputs: WatchedOutput[] = []
      for (const raw of await this.#source.transactions(some)) {
        if (raw === undefined) continue
        const found = findInTransaction(raw, this.#watched)
        const [output] = found.outputs
        this.noteSpendings(found.spendings)
        if (output !== undefined) this.#keepInputs(output.txid, inputsOfTransaction(raw))
        outputs.push(...found.outputs)
      }
      if (outputs.length > 0) await this.#handlers.onMempool(outputs)
      for (const txid of some) this.#looked.add(txid)
    }
  }

  #keepInputs(txid: string, inputs: readonly string[]): void {
    this.#inputs.delete(txid)
    this.#inputs.set(txid, inputs)
    for (const input of inputs) if (!this.#spenders.has(input)) this.#spenders.set(input, [])
    this.noteSpendings(inputs.map((outpoint) => ({ outpoint, spentBy: txid })))
    for (const [oldest, spent] of this.#inputs) {
      if (this.#spenders.size <= INPUTS_KEPT) return
      this.#inputs.delete(oldest)
      for (const input of spent) this.#spenders.delete(input)
    }
  }

  /** Of the owner's unconfirmed transactions those that no source has. */
  async #tellVanished(present: ReadonlySet<string>, isAtTip: () => Promise<boolean>): Promise<void> {
    const missing = [...new Set(this.#handlers.unconfirmedTxids())].filter((txid) => !present.has(txid))
    if (missing.length === 0) return
    const elsewhere = await this.#source.transactions(missing)
    const gone = missing.filter((_, index) => elsewhere[index] === undefined)
    if (gone.length === 0) return
    if (!(await isAtTip())) {
      // They may be in a block that was not handled yet.
      this.isDue = true
      return
    }
    await this.#handlers.onVanished(
      gone.map((txid) => {
        const replacedBy = this.#replacementOf(txid)
        return { txid, ...(replacedBy === undefined ? {} : { replacedBy }) }
      }),
    )
  }

  #replacementOf(txid: string): string | undefined {
    const others = (this.#inputs.get(txid) ?? []).flatMap((input) => this.#spenders.get(input) ?? [])
    return others.findLast((other) => other !== txid)
  }
}
