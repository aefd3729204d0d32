import { hash } from 'node:crypto'
import { AppError } from '@tollward/errors'
import { z } from 'zod'
import type { Findings, UnconfirmedIds, Watched, WatchedScripts } from '../chain-source.ts'
import { findInTransaction, showHash } from '../watched-outputs.ts'
import { each } from './each.ts'
import { ElectrumConnection, type ElectrumOptions } from './electrum-connection.ts'
import { forged, HEADER_BYTES } from './header.ts'
import type { ProvenHeader } from './header-chain.ts'
import { type ProvenTransaction, proveTransaction } from './merkle.ts'
import type { LightServer, ServerNotices, ToldHeaders } from './server.ts'

const Hash = z.string().regex(/^[0-9a-f]{64}$/)
const Hex = z.string().regex(/^([0-9a-f]{2})*$/)
const Tip = z.object({ height: z.int().min(0), hex: Hex })
/** Protocol 1.4 gives headers in one string, 1.6 in a list. */
const Headers = z.union([z.object({ headers: z.array(Hex) }), z.object({ hex: Hex })])
/** Far more than anybody pays to one address. */
const HISTORY_MAX = 10_000
const History = z.array(z.object({ tx_hash: Hash, height: z.int() })).max(HISTORY_MAX)
const Branch = z.object({ merkle: z.array(Hash), pos: z.int().min(0) })
const Coinbase = z.object({ merkle: z.array(Hash), tx_hash: Hash })
const Status = z.string().nullable()
const Change = z.tuple([Hash, Status])

/** The most that servers give. */
const HEADERS_PER_REQUEST = 2_016
/** Questions about scripts under way at once: servers take few from one client at a time. */
const QUESTIONS_AT_ONCE = 100
/** What one server is asked to watch. Servers give up on clients that want more. */
const SCRIPTS_MAX = 100_000

interface Connected {
  readonly connection: ElectrumConnection
  /** The server's best block, as it last said. */
  tip: string
  /** The best block for which all statuses were asked for again. */
  statusesOf: string
  /** What the server last said of each script by itself or when asked: changes whenever its history does. */
  readonly statuses: Map<string, string | null>
  /** Histories by script hash, with the status that they belong to. */
  readonly histories: Map<string, { readonly status: string; readonly history: z.infer<typeof History> }>
}

/** A server of the Electrum protocol, by TCP or TLS. It is asked script by script, and proves each payment. */
export class ElectrumServer implements LightServer {
  readonly name: string
  readonly givesBlocks = false
  readonly #options: ElectrumOptions
  readonly #notices: ServerNotices
  #connected: Promise<Connected> | undefined
  #stopped = false

  constructor(options: ElectrumOptions, notices: ServerNotices) {
    this.name = new URL(options.url).host
    this.#options = options
    this.#notices = notices
  }

  /** Both questions at once: servers hold small answers back until they have more to send. */
  async headersFrom(from: number): Promise<ToldHeaders> {
    const connected = await this.#connection()
    const [{ height: tipHeight, hex }, told] = await Promise.all([
      connected.connection.call(Tip, 'blockchain.headers.subscribe', []),
      this.#headers(from, HEADERS_PER_REQUEST),
    ])
    connected.tip = hex
    // What is above is not in the index yet that payments are looked up in.
    return { tipHeight, headers: told.slice(0, Math.max(0, tipHeight - from + 1)) }
  }

  async findingsIn(block: ProvenHeader, watched: Watched): Promise<Findings> {
    const history = await this.#history(watched.scripts, { isForBlock: true })
    const txids = new Set(history.flatMap((entry) => (entry.height === block.height ? [entry.tx_hash] : [])))
    if (txids.size === 0) return { outputs: [], spendings: [] }
    const coinbase = this.#coinbase(block)
    const found: Findings[] = []
    const proving = each(txids, QUESTIONS_AT_ONCE, async (txid) => {
      const proof = await this.#proofOf(txid, block)
      await this.#prove(block, proof, await coinbase, txid)
      found.push(findInTransaction(proof.raw, watched))
    })
    await Promise.all([coinbase, proving])
    return {
      outputs: found.flatMap(({ outputs }) => outputs),
      spendings: found.flatMap(({ spendings }) => spendings),
    }
  }

  async heightsOf(scripts: readonly string[]): Promise<number[]> {
    const heights: number[] = []
    await each(scripts.map(scriptHash), QUESTIONS_AT_ONCE, async (id) => {
      const history = await this.#call(History, 'blockchain.scripthash.get_history', [id])
      heights.push(...history.map(({ height }) => height).filter((height) => height > 0))
    })
    return heights
  }

  async unconfirmedIds(scripts: WatchedScripts): Promise<UnconfirmedIds> {
    const history = await this.#history(scripts, { isForBlock: false })
    // Height 0: unconfirmed; -1: so are transactions that it spends of.
    const txids = history.flatMap((entry) => (entry.height <= 0 ? [entry.tx_hash] : []))
    return { txids: [...new Set(txids)], complete: true }
  }

  async transaction(txid: string): Promise<Uint8Array | undefined> {
    try {
      return await this.#raw(txid)
    } catch (error) {
      if (error instanceof AppError && error.code === 'not_found') return undefined
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true
    const connected = await this.#connected?.catch(() => undefined)
    await connected?.connection[Symbol.asyncDispose]()
  }

  async #headers(from: number, count: number): Promise<Uint8Array[]> {
    const answer = await this.#call(Headers, 'blockchain.block.headers', [from, count])
    const bytes = Buffer.from('hex' in answer ? answer.hex : answer.headers.join(''), 'hex')
    if (bytes.length % HEADER_BYTES !== 0) throw forged('A block header has 80 bytes.')
    return Array.from({ length: bytes.length / HEADER_BYTES }, (_, index) =>
      bytes.subarray(index * HEADER_BYTES, (index + 1) * HEADER_BYTES),
    )
  }

  async #coinbase(block: ProvenHeader): Promise<ProvenTransaction> {
    const { merkle, tx_hash } = await this.#call(Coinbase, 'blockchain.transaction.id_from_pos', [
      block.height,
      0,
      true,
    ])
    return { raw: await this.#raw(tx_hash), branch: { position: 0, siblings: merkle } }
  }

  async #proofOf(txid: string, { height }: ProvenHeader): Promise<ProvenTransaction> {
    const [{ merkle: siblings, pos: position }, raw] = await Promise.all([
      this.#call(Branch, 'blockchain.transaction.get_merkle', [txid, height]),
      this.#raw(txid),
    ])
    return { raw, branch: { position, siblings } }
  }

  /** A proof that does not hold is forged, unless the server has another block at this height by now. */
  async #prove(
    block: ProvenHeader,
    proven: ProvenTransaction,
    coinbase: ProvenTransaction,
    txid: string,
  ): Promise<void> {
    try {
      if (proveTransaction(block, proven, coinbase) !== txid) throw forged('The transaction is another one.')
    } catch (error) {
      const [header] = await this.#headers(block.height, 1)
      if (header !== undefined && Buffer.compare(header, block.raw) === 0) throw error
      throw new AppError('unavailable', 'The server follows another branch by now.', { cause: error })
    }
  }

  async #raw(txid: string): Promise<Uint8Array> {
    return Buffer.from(await this.#call(Hex, 'blockchain.transaction.get', [txid]), 'hex')
  }

  /** What the server has of all scripts. What changed is asked for. */
  async #history(scripts: WatchedScripts, { isForBlock }: { isForBlock: boolean }): Promise<z.infer<typeof History>> {
    const connected = await this.#connection()
    const { tip, statuses, histories } = connected
    const ids = [...scripts.all()].map(scriptHash)
    if (ids.length > SCRIPTS_MAX) throw new AppError('unavailable', 'There is more to watch than a server takes.')
    // The server tells of a block before it tells what is in it, so after each block everything is asked for once.
    const isDue = isForBlock && connected.statusesOf !== tip
    await each(
      ids.filter((id) => isDue || !statuses.has(id)),
      QUESTIONS_AT_ONCE,
      async (id) => void statuses.set(id, await this.#call(Status, 'blockchain.scripthash.subscribe', [id])),
    )
    if (isDue) connected.statusesOf = tip
    const used = ids.flatMap((id) => {
      const status = statuses.get(id)
      return status ? [{ id, status }] : []
    })
    await each(used, QUESTIONS_AT_ONCE, async ({ id, status }) => {
      if (histories.get(id)?.status === status) return
      histories.set(id, { status, history: await this.#call(History, 'blockchain.scripthash.get_history', [id]) })
    })
    return used.flatMap(({ id }) => histories.get(id)?.history ?? [])
  }

  async #call<T>(result: z.ZodType<T>, method: string, params: readonly unknown[]): Promise<T> {
    const { connection } = await this.#connection()
    return await connection.call(result, method, params)
  }

  async #connection(): Promise<Connected> {
    if (this.#stopped) throw new AppError('unavailable', 'This source is closed.')
    this.#connected ??= this.#connect()
    return await this.#connected
  }

  async #connect(): Promise<Connected> {
    try {
      const statuses = new Map<string, string | null>()
      const connection = await ElectrumConnection.open(this.#options, (method, params) => {
        if (method === 'blockchain.headers.subscribe') this.#notices.onBlock()
        if (method !== 'blockchain.scripthash.subscribe') return
        const changed = Change.safeParse(params)
        if (changed.success && statuses.has(changed.data[0])) statuses.set(...changed.data)
        this.#notices.onGap()
      })
      void connection.closed.then(() => {
        this.#connected = undefined
        this.#notices.onGap()
      })
      return { connection, tip: '', statusesOf: '', statuses, histories: new Map() }
    } catch (error) {
      this.#connected = undefined
      throw error
    }
  }
}

/** The protocol's name of a script: its SHA-256, shown as nodes show hashes. */
function scriptHash(script: string): string {
  return showHash(hash('sha256', Buffer.from(script, 'hex'), 'buffer'))
}
