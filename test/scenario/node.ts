import { readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { ROOT } from '../checks/copy.ts'
import { send } from './http.ts'

const NODE = 'http://127.0.0.1:18443'

/** One call of the local stack's bitcoin node, with the credentials that it keeps beside the operator's. */
async function callNode<T = unknown>(method: string, params: readonly unknown[] = []): Promise<T> {
  const operatorFile = process.env.TOLLWARD_OPERATOR_FILE ?? join(ROOT, '.tollward/operator.json')
  const cookie = await readFile(join(dirname(operatorFile), 'bitcoin/regtest/.cookie'), 'utf8')
  const { body } = await send(NODE, {
    method: 'POST',
    headers: { authorization: `Basic ${Buffer.from(cookie.trim()).toString('base64')}` },
    body: JSON.stringify({ jsonrpc: '2.0', id: 1, method, params }),
  })
  const { result, error } = JSON.parse(body) as { result: T; error?: { message: string } | null }
  if (error) throw new Error(`${method}: ${error.message}`)
  return result
}

/** Takes back the node's best block and mines two empty ones instead; what was in it waits in the mempool. */
export async function reorganise(): Promise<void> {
  await callNode('invalidateblock', [await callNode('getbestblockhash')])
  const miner = await callNode('getnewaddress')
  for (let count = 0; count < 2; count += 1) await callNode('generateblock', [miner, []])
}
