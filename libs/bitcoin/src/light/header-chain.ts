import { AppError } from '@tollward/errors'
import type { BlockPlace, ChainHeader } from '../chain-source.ts'
import { forged, type Header, readHeader } from './header.ts'
import { assertWork, type ProofOfWorkRules, RETARGET_BLOCKS, retargetedBits, workOf } from './proof-of-work.ts'

/** A header whose work, target and time are right, on a branch that begins at the checkpoint. */
export interface ProvenHeader extends Header, Omit<ChainHeader, 'previousHash'> {
  readonly previous: ProvenHeader | undefined
}

/** Blocks that BIP-113's median time past looks at. */
const MEDIAN_BLOCKS = 11
/** What a miner's clock may be ahead: the consensus rule. */
const TIME_AHEAD_MAX_SECONDS = 2 * 60 * 60
/** Headers kept beside the best chain. Beyond, they are forgotten and would be asked for again. */
const SIDE_HEADERS_MAX = 20_000

/**
 * Headers from a checkpoint on, in all their branches, each checked as a node checks it; one chain of them is the best one.
 * Headers are added and the best tip chosen from outside, so that nothing here depends on who told.
 */
export class HeaderChain {
  readonly checkpoint: ProvenHeader
  readonly #rules: ProofOfWorkRules
  readonly #byHash = new Map<string, ProvenHeader>()
  /** The best chain from the checkpoint on. */
  readonly #best: ProvenHeader[]

  /** `raw`: the header at the checkpoint, of anybody. Throws AppError `failed_precondition` if it is another one. */
  constructor(rules: ProofOfWorkRules, { hash, height }: BlockPlace, raw: Uint8Array) {
    const header = readHeader(raw)
    if (header.hash !== hash) {
      throw new AppError('failed_precondition', `The block at height ${height} is not that of the checkpoint.`)
    }
    if (rules.retargets && height % RETARGET_BLOCKS !== 0) {
      throw new AppError('failed_precondition', `A checkpoint is at a multiple of ${RETARGET_BLOCKS} blocks.`)
    }
    this.checkpoint = {
      ...{ ...header, height, previous: undefined },
      ...{ medianTimePastMs: header.time * 1000, chainWork: workOf(header.bits) },
    }
    this.#rules = rules
    this.#byHash.set(hash, this.checkpoint)
    this.#best = [this.checkpoint]
  }

  get tip(): ProvenHeader {
    return this.#best.at(-1) ?? this.checkpoint
  }

  get(hash: string): ProvenHeader | undefined {
    return this.#byHash.get(hash)
  }

  /** The header of the best chain; undefined above its tip. AppError `failed_precondition` below what can be known. */
  at(height: number): ProvenHeader | undefined {
    const { height: lowest } = this.checkpoint
    // The median time past of the first blocks depends on blocks before the checkpoint.
    if (height < (lowest === 0 ? 0 : lowest + MEDIAN_BLOCKS - 1)) {
      throw new AppError(
        'failed_precondition',
        `Blocks at height ${height} are before the checkpoint: take an earlier one.`,
      )
    }
    return this.#best[height - lowest]
  }

  isBest({ hash, height }: BlockPlace): boolean {
    return this.#best[height - this.checkpoint.height]?.hash === hash
  }

  /**
   * Adds a header of anybody. Throws AppError `not_found` if the one before it is not known, `unavailable` if it is from the future,
   * and `invalid_argument` if it breaks a rule of the network.
   */
  add(raw: Uint8Array, nowMs: number): ProvenHeader {
    const header = readHeader(raw)
    const known = this.#byHash.get(header.hash)
    if (known !== undefined) return known
    const previous = this.#byHash.get(header.previousHash)
    if (previous === undefined) throw new AppError('not_found', 'The block before this one is not known.')
    if (header.bits !== this.#bitsAfter(previous))
      throw forged('The block has another target than its height asks for.')
    assertWork(header)
    if (header.time * 1000 <= previous.medianTimePastMs) throw forged('The block is older than those before it.')
    if (header.time > nowMs / 1000 + TIME_AHEAD_MAX_SECONDS) {
      throw new AppError('unavailable', 'The block is from the future: check the clock.')
    }
    const added = {
      // One string less for each block.
      ...{ ...header, previousHash: previous.hash, previous, height: previous.height + 1 },
      ...{
        medianTimePastMs: medianTime(header.time, previous) * 1000,
        chainWork: previous.chainWork + workOf(header.bits),
      },
    }
    this.#byHash.set(added.hash, added)
    return added
  }

  /** Makes the branch that ends here the best chain. */
  choose(tip: ProvenHeader): void {
    const { height: lowest } = this.checkpoint
    const joining: ProvenHeader[] = []
    for (
      let header: ProvenHeader | undefined = tip;
      header !== undefined && !this.isBest(header);
      header = header.previous
    ) {
      joining.push(header)
    }
    this.#best.length = tip.height - joining.length - lowest + 1
    this.#best.push(...joining.reverse())
    if (this.#byHash.size - this.#best.length > SIDE_HEADERS_MAX) this.#forgetSides()
  }

  #forgetSides(): void {
    this.#byHash.clear()
    for (const header of this.#best) this.#byHash.set(header.hash, header)
  }

  #bitsAfter(previous: ProvenHeader): number {
    if (!this.#rules.retargets || (previous.height + 1) % RETARGET_BLOCKS !== 0) return previous.bits
    let first = previous
    for (let back = 1; back < RETARGET_BLOCKS; back += 1) first = first.previous ?? first
    return retargetedBits(previous.bits, this.#rules, first.time, previous.time)
  }
}

function medianTime(time: number, previous: ProvenHeader): number {
  const times = [time]
  for (let header: ProvenHeader | undefined = previous; header !== undefined && times.length < MEDIAN_BLOCKS; ) {
    times.push(header.time)
    header = header.previous
  }
  return times.sort((one, other) => one - other)[Math.floor(times.length / 2)] ?? time
}
