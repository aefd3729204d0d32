import { randomBytes } from 'node:crypto'
import { findInBlock, ScriptMap } from '@tollward/bitcoin'
import { Block, Transaction } from 'bitcoinjs-lib'
import { percentile } from './latencies.ts'

/** One line of the table; milliseconds, but for the counts. */
export interface Row {
  readonly [column: string]: string | number
}

export const name = 'scan: a full block against a million watched scripts, beside parsing it'

const TRANSACTIONS = 5_000
const WATCHED_SCRIPTS = 1_000_000
/** Of the block's outputs these many pay watched scripts. */
const PAYMENTS = 100
const INPUTS = 2
const OUTPUTS = 3
/** Brings the block to 4 MB, the most that a block can have. */
const WITNESS_BYTES = 255
const WARM_UP = 5
const ROUNDS = 30
/** What is promised: looking a block through takes at most this many times as long as parsing it. */
const RATIO_MAX = 1.3

/** Each round parses the same block with bitcoinjs-lib, which looks nothing up, and then looks it through. */
export async function run(): Promise<{ rows: Row[] }> {
  const watched = new ScriptMap<true>()
  while (watched.size < WATCHED_SCRIPTS) watched.set(witnessScript().toString('hex'), true)
  const block = fullBlock([...watched.keys()].slice(0, PAYMENTS))
  const spent = Block.fromBuffer(block).transactions?.at(-1)?.ins[0]
  if (spent === undefined) throw new Error('the block is empty')
  const spendings = new Set([`${Buffer.from(spent.hash).reverse().toString('hex')}:${spent.index}`])
  const [parsedMs, scannedMs]: [number[], number[]] = [[], []]
  for (let round = -WARM_UP; round < ROUNDS; round += 1) {
    const beganMs = performance.now()
    const parsed = Block.fromBuffer(block)
    const parsedAtMs = performance.now()
    const found = findInBlock(block, { scripts: watched, spendings })
    const scannedAtMs = performance.now()
    if (
      parsed.transactions?.length !== TRANSACTIONS ||
      found.outputs.length !== PAYMENTS ||
      found.spendings.length !== 1
    )
      throw new Error('not all was found')
    if (round < 0) continue
    parsedMs.push(parsedAtMs - beganMs)
    scannedMs.push(scannedAtMs - parsedAtMs)
  }
  const ratio = percentile(scannedMs, 0.5) / percentile(parsedMs, 0.5)
  const megabytes = Number((block.length / 1e6).toFixed(2))
  return {
    rows: [
      { ...row('bitcoinjs-lib parses the block', parsedMs), megabytes },
      { ...row('the block is looked through', scannedMs), megabytes, found: PAYMENTS },
      { what: `at most ${RATIO_MAX} times as long: ${ratio.toFixed(2)}, ${ratio <= RATIO_MAX ? 'yes' : 'NO'}` },
    ],
  }
}

function fullBlock(paid: readonly string[]): Buffer {
  const block = new Block()
  block.prevHash = randomBytes(32)
  block.merkleRoot = randomBytes(32)
  const scripts = [...paid]
  block.transactions = Array.from({ length: TRANSACTIONS }, () => {
    const transaction = new Transaction()
    for (let input = 0; input < INPUTS; input += 1) {
      transaction.setWitness(transaction.addInput(randomBytes(32), input), [
        randomBytes(WITNESS_BYTES),
        randomBytes(33),
      ])
    }
    for (let output = 0; output < OUTPUTS; output += 1) {
      const script = output === 0 ? scripts.pop() : undefined
      transaction.addOutput(script === undefined ? witnessScript() : Buffer.from(script, 'hex'), 1_000n)
    }
    return transaction
  })
  return Buffer.from(block.toBuffer())
}

/** A P2WPKH output of nobody. */
function witnessScript(): Buffer {
  return Buffer.concat([Buffer.from('0014', 'hex'), randomBytes(20)])
}

function row(what: string, values: readonly number[]): Row {
  return { what, count: values.length, p50Ms: percentile(values, 0.5), p99Ms: percentile(values, 0.99) }
}
