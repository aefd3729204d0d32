import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { readHeader } from './header.ts'
import { HeaderChain } from './header-chain.ts'
import { assertWork, bitsOf, PROOF_OF_WORK, retargetedBits, targetOf, workOf } from './proof-of-work.ts'

const FORGED = { name: 'AppError', code: 'invalid_argument' }
/** Block 0 of regtest, whose rules are those of the other networks but for the retargeting. */
const GENESIS = { hash: '0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206', height: 0 }
const GENESIS_RAW = Buffer.from(
  `01000000${'00'.repeat(32)}3ba3edfd7a7b12b27ac72c3e67768f617fc81bc3888a51323a9fb8aa4b1e5e4adae5494dffff7f2002000000`,
  'hex',
)
const GENESIS_TIME = 1_296_688_602
const SPACING = 600
/** So easy that a test finds each block at once, and easier than it can become when it may change. */
const EASY = { limitBits: 0x207fffff, retargets: true }
const NOW_MS = (GENESIS_TIME + 400_000 * SPACING) * 1000

interface Fields {
  time: number
  bits?: number
  salt?: number
  /** Finds a hash that does not meet the target instead. */
  lazy?: boolean
}

function mined(previousHash: string, { time, bits = 0x207fffff, salt = 0, lazy = false }: Fields): Buffer {
  const raw = Buffer.alloc(80)
  raw.writeInt32LE(4, 0)
  raw.set(Buffer.from(previousHash, 'hex').reverse(), 4)
  raw.writeUInt32LE(salt, 36)
  raw.writeUInt32LE(time, 68)
  raw.writeUInt32LE(bits, 72)
  for (let nonce = 0; ; nonce += 1) {
    raw.writeUInt32LE(nonce, 76)
    if (BigInt(`0x${readHeader(raw).hash}`) <= targetOf(bits) !== lazy) return raw
  }
}

const regtest = () => new HeaderChain(PROOF_OF_WORK.regtest, GENESIS, GENESIS_RAW)

/** Blocks on top of one, ten minutes each; returns the last. */
function extend(chain: HeaderChain, from: { hash: string; time: number }, blocks: number, salt = 0) {
  let last = chain.get(from.hash) ?? chain.checkpoint
  for (let block = 0; block < blocks; block += 1) {
    last = chain.add(mined(last.hash, { time: last.time + SPACING, salt, bits: last.bits }), NOW_MS)
  }
  return last
}

test('targets of a compact form are those of the protocol; negative, zero and overflowing ones are refused', () => {
  assert.equal(targetOf(0x1d00ffff), 0xffffn << 208n)
  assert.equal(targetOf(0x05009234), 0x92340000n)
  assert.equal(targetOf(0x04123456), 0x12345600n)
  assert.equal(targetOf(0x02123456), 0x1234n)
  for (const negative of [0x01fedcba, 0x04923456, 0x1d80ffff]) assert.throws(() => targetOf(negative), /negative/)
  for (const zero of [0, 0x1d000000, 0x01003456, 0x00123456]) assert.throws(() => targetOf(zero), /zero/)
  for (const large of [0xff123456, 0x23000001, 0x2200ffff + 1, 0x21010000]) assert.throws(() => targetOf(large), FORGED)
  assert.equal(targetOf(0x2100ffff), 0xffffn << 240n)
})

test('a target survives its compact form as far as that goes', () => {
  fc.assert(
    fc.property(fc.bigInt({ min: 1n, max: 2n ** 256n - 1n }), (target) => {
      const kept = targetOf(bitsOf(target))
      assert.equal(bitsOf(kept), bitsOf(target))
      assert.ok(kept <= target && target - kept <= target >> 15n)
    }),
  )
})

test('the target changes as it did on mainnet, within its bounds', () => {
  const rules = PROOF_OF_WORK.mainnet
  // Blocks 30,240 to 32,255: the first that were too fast.
  assert.equal(retargetedBits(0x1d00ffff, rules, 1_261_130_161, 1_262_152_739), 0x1d00d86a)
  // Blocks 0 to 2,015: never easier than the limit.
  assert.equal(retargetedBits(0x1d00ffff, rules, 1_231_006_505, 1_233_061_996), 0x1d00ffff)
  // Blocks 66,528 to 68,543: not more than four times harder.
  assert.equal(retargetedBits(0x1c05a3f4, rules, 1_279_008_237, 1_279_297_671), 0x1c0168fd)
  // Nor more than four times easier.
  assert.equal(retargetedBits(0x1c387f6f, rules, 1_263_163_443, 1_269_211_443), 0x1d00e1fd)
})

test('a header counts only with the work that its network asks for', () => {
  const chain = regtest()
  const time = GENESIS_TIME + SPACING
  assert.throws(() => assertWork(readHeader(mined(GENESIS.hash, { time, lazy: true }))), /has not the work/)
  assert.throws(() => chain.add(mined(GENESIS.hash, { time, lazy: true }), NOW_MS), FORGED)
  // Less work, or more than asked for: the rules say how much, not the miner.
  assert.throws(() => chain.add(mined(GENESIS.hash, { time, bits: 0x207ffffe }), NOW_MS), /another target/)
  for (const bits of [0x2080ffff, 0xff123456, 0]) {
    const raw = mined(GENESIS.hash, { time })
    raw.writeUInt32LE(bits, 72)
    assert.throws(() => chain.add(raw, NOW_MS), FORGED)
  }
  assert.equal(chain.add(mined(GENESIS.hash, { time }), NOW_MS).height, 1)
})

test('a new target is the one of the last 2,016 blocks, at its height and no other', () => {
  const first = mined('00'.repeat(32), { time: GENESIS_TIME })
  const chain = new HeaderChain(EASY, { hash: readHeader(first).hash, height: 2016 * 5 }, first)
  const last = extend(chain, chain.checkpoint, 2015)
  // Ten minutes each, as it should be, but for one block: the period has 2,015 spaces.
  const expected = retargetedBits(last.bits, EASY, chain.checkpoint.time, last.time)
  assert.notEqual(expected, last.bits)
  const next = { time: last.time + SPACING }
  assert.throws(() => chain.add(mined(last.hash, { ...next, bits: last.bits }), NOW_MS), /another target/)
  assert.equal(chain.add(mined(last.hash, { ...next, bits: expected }), NOW_MS).height, 2016 * 6)
})

test('the branch with more work is the better one, however many blocks it has', () => {
  const chain = regtest()
  const long = extend(chain, chain.checkpoint, 5, 1)
  assert.equal(long.chainWork, 6n * workOf(0x207fffff))
  chain.choose(long)
  assert.deepEqual([chain.tip.hash, chain.at(3)?.height, chain.at(6)], [long.hash, 3, undefined])
  const other = extend(chain, chain.get(chain.at(2)?.hash ?? '') ?? chain.checkpoint, 4, 2)
  const left = chain.at(3)
  chain.choose(other)
  assert.equal(chain.tip, other)
  assert.equal(chain.isBest({ hash: left?.hash ?? '', height: 3 }), false)
  assert.equal(chain.isBest({ hash: chain.at(2)?.hash ?? '', height: 2 }), true)
  chain.choose(chain.get(GENESIS.hash) ?? long)
  assert.equal(chain.tip.height, 0)
  assert.ok(workOf(0x1d00ffff) > 10n * workOf(0x1e00ffff))
})

test('the median time past is that of the last eleven blocks, and no block is older than it', () => {
  const chain = regtest()
  const last = extend(chain, chain.checkpoint, 20)
  assert.equal(last.medianTimePastMs, (last.time - 5 * SPACING) * 1000)
  const time = last.medianTimePastMs / 1000
  assert.throws(() => chain.add(mined(last.hash, { time }), NOW_MS), /older/)
  assert.equal(chain.add(mined(last.hash, { time: time + 1 }), NOW_MS).height, 21)
})

test('a block from the future waits, and one that follows nothing known is not taken', () => {
  const chain = regtest()
  const time = GENESIS_TIME + SPACING
  const raw = mined(GENESIS.hash, { time })
  assert.throws(() => chain.add(raw, (time - 2 * 60 * 60 - 1) * 1000), { code: 'unavailable' })
  assert.equal(chain.add(raw, (time - 2 * 60 * 60) * 1000).height, 1)
  assert.throws(() => chain.add(mined('11'.repeat(32), { time }), NOW_MS), { code: 'not_found' })
  assert.throws(() => chain.add(raw.subarray(1), NOW_MS), FORGED)
})

test('a chain begins at its checkpoint and nowhere else', () => {
  const other = mined('00'.repeat(32), { time: GENESIS_TIME })
  assert.throws(() => new HeaderChain(PROOF_OF_WORK.regtest, GENESIS, other), { code: 'failed_precondition' })
  const at = { hash: readHeader(other).hash, height: 1000 }
  assert.throws(() => new HeaderChain(PROOF_OF_WORK.mainnet, at, other), /multiple of 2016/)
  const chain = new HeaderChain(EASY, { ...at, height: 2016 }, other)
  chain.choose(extend(chain, chain.checkpoint, 12))
  assert.throws(() => chain.at(2025), { code: 'failed_precondition' })
  assert.equal(chain.at(2026)?.height, 2026)
})
