import { formatBtc, type NodeClient, parsePaymentUri } from '@tollward/bitcoin'
import { AppError } from '@tollward/errors'
import { z } from 'zod'
import { checkBlocks, requireRegtest } from '../domain/regtest.ts'
import type { AdminMethods } from './calls.ts'

/** The wallet of a regtest node, which plays the customer. On any other chain every call is refused. */
export function regtestMethods(node: NodeClient | undefined): Pick<AdminMethods, 'payRegtest' | 'mineRegtest'> {
  const regtest = async (): Promise<NodeClient> => {
    if (!node)
      throw new AppError('failed_precondition', 'This stack has no regtest node; nothing can be paid or mined here.')
    requireRegtest((await node.call(z.object({ chain: z.string() }), 'getblockchaininfo')).chain)
    return node
  }
  return {
    payRegtest: async ({ uri }) => {
      const wallet = await regtest()
      const { address, amountSats } = parsePaymentUri(uri, 'regtest')
      if (amountSats === undefined) throw new AppError('invalid_argument', 'The payment URI names no amount.')
      return { txid: await wallet.call(z.string(), 'sendtoaddress', [address, formatBtc(amountSats)]) }
    },
    mineRegtest: async ({ blocks }) => {
      checkBlocks(blocks)
      const wallet = await regtest()
      const address = await wallet.call(z.string(), 'getnewaddress')
      await wallet.call(z.array(z.string()), 'generatetoaddress', [blocks, address])
      return { height: await wallet.call(z.int(), 'getblockcount') }
    },
  }
}
