import { hash } from 'node:crypto'
import { AppError } from '@tollward/errors'
import { z } from 'zod'
import type { Findings, UnconfirmedIds, Watched, WatchedScripts } from '../chain-source.ts'
import { findInBlock } from '../watched-outputs.ts'
import { each } from './each.ts'
import { forged } from './header.ts'
import type { ProvenHeader } from './header-chain.ts'
import { proveBlock } from './merkle.ts'
import type { LightServer, ToldHeaders } from './server.ts'

/** Where a server of Esplora's HTTP interface is, such as `https://host/api`. */
export interface EsploraOptions {
  readonly url: string
  readonly timeoutMs?: number
}

const REQUEST_TIMEOUT_MS = 30_000
/** A block, or the mempool's transactions of one script. */
const RESPONSE_BYTES_MAX = 8 * 1024 * 1024
/** Scripts asked for in one round; those left wait for the next one. */
const SCRIPTS_PER_ROUND = 200
const QUESTIONS_AT_ONCE = 8
/** Each is asked for by itself. */
const HEADERS_AT_ONCE = 16
/** Confirmed transactions of a script that one answer holds, unless they are the last. */
const TRANSACTIONS_PER_PAGE = 25

const Height = z.coerce.number<string>().int().min(0)
const Hash = z.string().regex(/^[0-9a-f]{64}$/)
const HeaderHex = z.string().regex(/^[0-9a-f]{160}$/)
const Confirmed = z.array(z.object({ txid: Hash, status: z.object({ block_height: z.int().min(0) }) }))
const Unconfirmed = z.array(z.object({ txid: Hash }))

/** A server of Esplora's HTTP interface. It hands out whole blocks, so that it can leave nothing out of them. */
export class EsploraServer implements LightServer {
  readonly name: string
  readonly givesBlocks = true
  readonly #url: string
  readonly #timeoutMs: number
  readonly #stopped = new AbortController()
  /** Where the next round of scripts begins. */
  #turn = 0

  constructor({ url, timeoutMs = REQUEST_TIMEOUT_MS }: EsploraOptions) {
    this.name = new URL(url).host
    this.#url = url.replace(/\/+$/, '')
    this.#timeoutMs = timeoutMs
  }

  async headersFrom(from: number): Promise<ToldHeaders> {
    const tipHeight = checked(Height, await this.#text('blocks/tip/height'))
    const heights = Array.from(
      { length: Math.max(0, Math.min(HEADERS_AT_ONCE, tipHeight - from + 1)) },
      (_, index) => from + index,
    )
    const headers = await Promise.all(heights.map((height) => this.#header(height)))
    const end = headers.indexOf(undefined)
    return { tipHeight, headers: headers.slice(0, end === -1 ? undefined : end).flatMap((header) => header ?? []) }
  }

  async findingsIn(block: ProvenHeader, watched: Watched): Promise<Findings> {
    const raw = await this.#get(`block/${block.hash}/raw`)
    if (raw === undefined) throw new AppError('unavailable', 'The server does not have this block.')
    proveBlock(raw, block)
    return findInBlock(raw, watched)
  }

  async heightsOf(scripts: readonly string[]): Promise<number[]> {
    const heights: number[] = []
    await each(scripts, QUESTIONS_AT_ONCE, async (script) => {
      for (let last = ''; ; ) {
        const text = await this.#text(`scripthash/${scriptHash(script)}/txs/chain${last}`)
        const page = checked(Confirmed, readJson(text))
        heights.push(...page.map(({ status }) => status.block_height))
        if (page.length < TRANSACTIONS_PER_PAGE) return
        last = `/${page.at(-1)?.txid}`
      }
    })
    return heights
  }

  async unconfirmedIds(scripts: WatchedScripts): Promise<UnconfirmedIds> {
    const all = [...scripts.all()]
    const some = [...all, ...all].slice(this.#turn, this.#turn + Math.min(SCRIPTS_PER_ROUND, all.length))
    this.#turn = all.length === 0 ? 0 : (this.#turn + some.length) % all.length
    const txids = new Set<string>()
    await each(some, QUESTIONS_AT_ONCE, async (script) => {
      const text = await this.#text(`scripthash/${scriptHash(script)}/txs/mempool`)
      for (const { txid } of checked(Unconfirmed, readJson(text))) txids.add(txid)
    })
    return { txids: [...txids], complete: some.length === all.length }
  }

  async transaction(txid: string): Promise<Uint8Array | undefined> {
    return await this.#get(`tx/${txid}/raw`)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped.abort()
  }

  async #header(height: number): Promise<Uint8Array | undefined> {
    const hash = await this.#get(`block-height/${height}`)
    if (hash === undefined) return undefined
    const header = await this.#get(`block/${checked(Hash, hash.toString('latin1').trim())}/header`)
    if (header === undefined) throw new AppError('unavailable', 'The server does not have this block.')
    return Buffer.from(checked(HeaderHex, header.toString('latin1').trim()), 'hex')
  }

  async #text(path: string): Promise<string> {
    const body = await this.#get(path)
    if (body === undefined) throw forged('The server lacks what each has.')
    return body.toString('utf8')
  }

  async #get(path: string): Promise<Buffer | undefined> {
    const signal = AbortSignal.any([AbortSignal.timeout(this.#timeoutMs), this.#stopped.signal])
    try {
      const response = await fetch(`${this.#url}/${path}`, { signal, redirect: 'error' })
      const body = await readLimited(response)
      if (response.ok) return body
      if (response.status === 404) return undefined
      throw new AppError('unavailable', `The Esplora server answers with status ${response.status}.`)
    } catch (error) {
      if (error instanceof AppError) throw error
      throw new AppError('unavailable', 'The Esplora server does not answer.', { cause: error })
    }
  }
}

/** The interface's name of a script. */
function scriptHash(script: string): string {
  return hash('sha256', Buffer.from(script, 'hex'))
}

async function readLimited(response: Response): Promise<Buffer> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of response.body ?? []) {
    bytes += chunk.byteLength
    if (bytes > RESPONSE_BYTES_MAX) throw forged('The server answers with too much.')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

function readJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new AppError('invalid_argument', "The server's answer is no JSON.", { cause: error })
  }
}

function checked<T>(schema: z.ZodType<T>, value: unknown): T {
  const result = schema.safeParse(value)
  if (!result.success) throw forged("The server's answer is not as documented.")
  return result.data
}
