import { AppError } from '@tollward/errors'

/** Blocks mined at once: more would keep the node from answering for minutes. */
const MINED_BLOCKS_MAX = 1000

/** AppError `invalid_argument` if the number of blocks is not one that may be mined at once. */
export function checkBlocks(blocks: number): void {
  if (blocks < 1 || blocks > MINED_BLOCKS_MAX) {
    throw new AppError('invalid_argument', `Mine 1 to ${MINED_BLOCKS_MAX} blocks at once.`)
  }
}

/** AppError `failed_precondition` unless the node says that its chain is regtest. */
export function requireRegtest(chain: string): void {
  if (chain !== 'regtest') {
    throw new AppError('failed_precondition', `The bitcoin node is on the chain ${chain}; this is for regtest only.`)
  }
}
