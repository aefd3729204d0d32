import { setImmediate as otherWork } from 'node:timers/promises'
import { type AccountKey, ScriptMap, type WatchedScripts } from '@tollward/bitcoin'

/** Addresses after the last one given out that are watched: whoever pays one of them was given it by somebody else. */
export const LOOKAHEAD_ADDRESSES = 1_000
/** Addresses made in one go: one takes about a quarter of a millisecond. */
const ADDRESSES_PER_GO = 100

/** Addresses of the account that no invoice of this ledger has, by their scripts. */
export class Addresses {
  readonly #account: AccountKey
  readonly #indexes = new ScriptMap<number>()
  /** All indexes below are known here, or had an invoice at the start. */
  #until = 0
  #extending: Promise<void> = Promise.resolve()

  constructor(account: AccountKey) {
    this.#account = account
  }

  /** The index of the address with this output script, in hexadecimal. */
  indexOf(script: string): number | undefined {
    return this.#indexes.get(script)
  }

  get scripts(): WatchedScripts {
    return { has: (script) => this.#indexes.has(script), all: () => this.#indexes.keys() }
  }

  /** Makes the addresses up to LOOKAHEAD_ADDRESSES after this index, except those that invoices have. */
  async extend(nextIndex: number, isTaken: (index: number) => boolean = () => false): Promise<void> {
    const extending = this.#extending.then(() => this.#extend(nextIndex + LOOKAHEAD_ADDRESSES, isTaken))
    this.#extending = extending
    await extending
  }

  async #extend(until: number, isTaken: (index: number) => boolean): Promise<void> {
    let made = 0
    for (; this.#until < until; this.#until += 1) {
      if (isTaken(this.#until)) continue
      this.#indexes.set(Buffer.from(this.#account.address(this.#until).script).toString('hex'), this.#until)
      made += 1
      if (made % ADDRESSES_PER_GO === 0) await otherWork()
    }
  }
}
