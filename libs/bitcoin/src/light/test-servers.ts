import { hash } from 'node:crypto'
import { once } from 'node:events'
import { createServer as createHttpServer } from 'node:http'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import { type Bitcoind, BitcoinRpcError } from '@tollward/testkit'

/** What a server answered, on its way to whoever asked. */
export interface Answer {
  readonly method: string
  readonly params: readonly unknown[]
  readonly result: unknown
}

/** A server whose answers a test changes. */
export interface ChangedServer extends AsyncDisposable {
  readonly url: string
  /** What becomes of an answer; may be set anew at any time. By default it stays what it is. */
  change: (answer: Answer) => unknown
}

/** Stands in front of a server of the Electrum protocol. */
export async function changedElectrum(url: string): Promise<ChangedServer> {
  const target = new URL(url)
  const sockets = new Set<Socket>()
  const server = createServer((client) => {
    const upstream = connect(Number(target.port), target.hostname)
    const asked = new Map<unknown, { method: string; params: unknown[] }>()
    for (const [socket, other] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      sockets.add(socket)
      socket.on('error', () => socket.destroy())
      socket.on('close', () => other.destroy())
    }
    createInterface({ input: client }).on('line', (line) => {
      const request = JSON.parse(line)
      asked.set(request.id, request)
      upstream.write(`${line}\n`)
    })
    createInterface({ input: upstream }).on('line', (line) => {
      const message = JSON.parse(line)
      const request = asked.get(message.id)
      const isAnswer = request !== undefined && 'result' in message
      const result = isAnswer ? changed.change({ ...request, result: message.result }) : undefined
      client.write(isAnswer ? `${JSON.stringify({ ...message, result })}\n` : `${line}\n`)
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const changed: ChangedServer = {
    url: `tcp://127.0.0.1:${(server.address() as AddressInfo).port}`,
    change: ({ result }) => result,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy()
      await new Promise((resolve) => server.close(resolve))
    },
  }
  return changed
}

interface VerboseTransaction {
  readonly txid: string
  readonly vout: readonly { readonly scriptPubKey: { readonly hex: string } }[]
}

/** Esplora's HTTP interface, as far as it is used, on the chain and mempool of a test's node. `change` gets paths and bodies. */
export async function esploraOf(node: Bitcoind): Promise<ChangedServer> {
  const paysScript = (id: string) => (transaction: VerboseTransaction) =>
    transaction.vout.some(({ scriptPubKey: { hex } }) => hash('sha256', Buffer.from(hex, 'hex')) === id)
  const raw = async (method: string, params: unknown[]) => Buffer.from(await node.rpc<string>(method, params), 'hex')
  const mempoolOf = async (id: string) => {
    const txids = await node.rpc<string[]>('getrawmempool')
    const calls = txids.map((txid) => node.rpc<VerboseTransaction>('getrawtransaction', [txid, true]))
    return (await Promise.all(calls)).filter(paysScript(id)).map(({ txid }) => ({ txid, status: { confirmed: false } }))
  }
  const chainOf = async (id: string) => {
    const found: unknown[] = []
    for (let height = await node.rpc<number>('getblockcount'); height > 0; height -= 1) {
      const block = await node.rpc<{ tx: VerboseTransaction[] }>('getblock', [
        await node.rpc('getblockhash', [height]),
        2,
      ])
      for (const { txid } of block.tx.filter(paysScript(id))) {
        found.push({ txid, status: { confirmed: true, block_height: height } })
      }
    }
    return found
  }
  const routes: readonly [RegExp, (at: string) => Promise<unknown>][] = [
    [/^\/blocks\/tip\/height$/, () => node.rpc('getblockcount')],
    [/^\/block-height\/(\d+)$/, (height) => node.rpc('getblockhash', [Number(height)])],
    [/^\/block\/(\w{64})\/header$/, (id) => node.rpc('getblockheader', [id, false])],
    [/^\/block\/(\w{64})\/raw$/, (id) => raw('getblock', [id, 0])],
    [/^\/tx\/(\w{64})\/raw$/, (id) => raw('getrawtransaction', [id])],
    [/^\/scripthash\/(\w{64})\/txs\/mempool$/, mempoolOf],
    [/^\/scripthash\/(\w{64})\/txs\/chain$/, chainOf],
  ]
  const answer = async (path: string): Promise<unknown> => {
    for (const [pattern, route] of routes) {
      const match = pattern.exec(path)
      if (match !== null) return await route(match[1] ?? '')
    }
    return undefined
  }
  const server = createHttpServer(async (request, response) => {
    const path = request.url ?? ''
    try {
      const result = changed.change({ method: path, params: [], result: await answer(path) })
      if (result === undefined) response.statusCode = 404
      response.end(Buffer.isBuffer(result) || typeof result === 'string' ? result : JSON.stringify(result ?? null))
    } catch (error) {
      response.statusCode = error instanceof BitcoinRpcError ? 404 : 500
      response.end()
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const changed: ChangedServer = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    change: ({ result }) => result,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
  return changed
}
