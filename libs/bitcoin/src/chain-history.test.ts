import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { AppError } from '@tollward/errors'
import { eventually } from '@tollward/testkit'
import fc from 'fast-check'
import {
  type BestBlock,
  type BlockPlace,
  type BlockStanding,
  type ChainChange,
  ChainFollower,
  type ChainHeader,
  type ChainSource,
  type Findings,
  SeveralSources,
  type UnconfirmedIds,
} from './mod.ts'

const SCRIPT = '51'
const POLL_INTERVAL_MS = 1
/** Histories that are tried, and the longest. */
const HISTORIES = 10
const STEPS_MAX = 10
const NODES = 2

/** Every block that any node has; each pays one output, named like the block. */
class BlockTree {
  readonly #headers = new Map<string, ChainHeader>()
  readonly first = this.#add(undefined)

  /** A new block on top of another one. */
  extend(hash: string): string {
    return this.#add(this.header(hash))
  }

  header(hash: string): ChainHeader {
    const header = this.#headers.get(hash)
    assert.ok(header)
    return header
  }

  /** Ascending, to this block. */
  chain(hash: string): readonly ChainHeader[] {
    const chain: ChainHeader[] = []
    for (let at: string | undefined = hash; at !== undefined; at = this.header(at).previousHash)
      chain.push(this.header(at))
    return chain.reverse()
  }

  #add(parent: ChainHeader | undefined): string {
    const hash = createHash('sha256').update(String(this.#headers.size)).digest('hex')
    const height = (parent?.height ?? -1) + 1
    // Work is not the same as height: of two branches the shorter one may be the better one.
    const chainWork = (parent?.chainWork ?? 0n) + BigInt(1 + (Number.parseInt(hash.slice(0, 2), 16) % 3))
    this.#headers.set(hash, { hash, height, medianTimePastMs: height, previousHash: parent?.hash, chainWork })
    return hash
  }
}

/** A node that follows what it has been told of, and answers as long as it lives. */
class Node implements ChainSource {
  readonly name: string
  alive = true
  readonly #tree: BlockTree
  readonly #known: Set<string>
  #best: string

  constructor(name: string, tree: BlockTree) {
    this.name = name
    this.#tree = tree
    this.#best = tree.first
    this.#known = new Set([tree.first])
  }

  get bestHash(): string {
    return this.#best
  }

  learn(hash: string): void {
    for (const header of this.#tree.chain(hash)) this.#known.add(header.hash)
    if (this.#tree.header(hash).chainWork > this.#tree.header(this.#best).chainWork) this.#best = hash
  }

  async best(): Promise<BestBlock> {
    this.#answer()
    return { ...this.#tree.header(this.#best), syncing: false }
  }

  async headersAt(heights: readonly number[]): Promise<readonly ChainHeader[]> {
    this.#answer()
    const chain = this.#tree.chain(this.#best)
    return heights.flatMap((height) => chain[height] ?? [])
  }

  async standingOf({ hash }: BlockPlace): Promise<BlockStanding> {
    this.#answer()
    if (!this.#known.has(hash)) return 'unknown'
    return this.#tree.chain(this.#best).some((header) => header.hash === hash) ? 'best' : 'left'
  }

  async findingsIn({ hash }: BlockPlace): Promise<Findings> {
    this.#answer()
    return { outputs: [{ txid: hash, vout: 0, amountSats: 1n, script: SCRIPT }], spendings: [] }
  }

  async candidateHeights(): Promise<undefined> {
    return undefined
  }

  async unconfirmedIds(): Promise<UnconfirmedIds> {
    this.#answer()
    return { txids: [], complete: true }
  }

  async transactions(txids: readonly string[]): Promise<undefined[]> {
    this.#answer()
    return txids.map(() => undefined)
  }

  listen(): AsyncDisposable {
    return new AsyncDisposableStack()
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  #answer(): void {
    if (!this.alive) throw new AppError('unavailable', 'This node is dead.')
  }
}

// A step: a branch of some blocks on a block that lies some way back, the nodes that learn of it, who dies and who lives again,
// and how often the handler fails.
const step = fc.record({
  back: fc.nat({ max: 5 }),
  blocks: fc.nat({ max: 6 }),
  learners: fc.array(fc.nat({ max: NODES - 1 }), { maxLength: NODES }),
  alive: fc.array(fc.boolean(), { minLength: NODES, maxLength: NODES }),
  faults: fc.nat({ max: 2 }),
})

/** The better node dies while the other one has not heard of its blocks. */
const LEFT_WITH_THE_LAGGARD = [
  { back: 0, blocks: 2, learners: [0], alive: [true, true], faults: 0 },
  { back: 0, blocks: 0, learners: [], alive: [false, true], faults: 0 },
]

test('through any forks, deaths and delays what was told adds up to the chain with the most work, and work is never given up', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: STEPS_MAX }), async (steps) => {
      const tree = new BlockTree()
      const nodes = Array.from({ length: NODES }, (_, index) => new Node(`node ${index}`, tree))
      const told: string[] = [tree.first]
      let faults = 0
      let troubles = 0
      const take = ({ disconnected, connected }: ChainChange) => {
        if (faults > 0) {
          faults -= 1
          throw new AppError('unavailable', 'not now')
        }
        const workBefore = tree.header(told.at(-1) ?? '').chainWork
        for (const { hash } of disconnected) assert.equal(told.pop(), hash, 'the newest block leaves first')
        for (const { hash, outputs } of connected) {
          assert.equal(tree.header(hash).previousHash, told.at(-1), 'a block joins on top of the one before')
          assert.equal(outputs[0]?.txid, hash)
          told.push(hash)
        }
        assert.ok(tree.header(told.at(-1) ?? '').chainWork >= workBefore, 'work was given up')
      }
      const violations: unknown[] = []
      await using follower = new ChainFollower({
        source: new SeveralSources(nodes, () => {}),
        known: [],
        pollIntervalMs: POLL_INTERVAL_MS,
        handlers: {
          scripts: { has: () => true, all: () => [] },
          onChange: async (change) => take(change),
          onMempool: async () => {},
          unconfirmedTxids: () => [],
          onVanished: async () => {},
          onTrouble: (error) => {
            troubles += 1
            if (error.code !== 'unavailable') violations.push(error)
          },
        },
      })
      await eventually(() => follower.caughtUp, { what: 'the first block is followed' })
      for (const { back, blocks, learners, alive, faults: wanted } of steps) {
        const [main] = nodes.map(({ bestHash }) => bestHash)
        const chain = tree.chain(main ?? tree.first)
        let tip = chain[Math.max(0, chain.length - 1 - back)]?.hash ?? tree.first
        for (let count = 0; count < blocks; count += 1) tip = tree.extend(tip)
        faults = wanted
        for (const [index, node] of nodes.entries()) {
          node.alive = alive[index] ?? true
          if (learners.includes(index)) node.learn(tip)
        }
        const reachable = nodes.filter((node) => node.alive).map(({ bestHash }) => tree.header(bestHash).chainWork)
        const reached = tree.header(told.at(-1) ?? '').chainWork
        const most = reachable.toSorted((one, other) => (one > other ? -1 : 1))[0] ?? 0n
        if (most < reached) {
          const before = troubles
          await eventually(() => troubles > before, { what: 'the others are told to be behind' })
          continue
        }
        await eventually(() => tree.header(told.at(-1) ?? '').chainWork === most, { what: 'the most work is followed' })
      }
      assert.deepEqual(violations, [])
      assert.deepEqual(
        told,
        tree.chain(told.at(-1) ?? '').map(({ hash }) => hash),
      )
    }),
    // A failure takes the time that it is waited for; shrinking would take it again and again.
    { numRuns: HISTORIES, endOnFailure: true, examples: [[LEFT_WITH_THE_LAGGARD]] },
  )
})
