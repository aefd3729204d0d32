import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AppError } from '@tollward/errors'
import { eventually, requires, startBitcoind } from '@tollward/testkit'
import { outputScript } from './mod.ts'
import { sourceOf } from './test-follower.ts'

const skip = await requires({ tools: ['bitcoind'] })
/** So many, and so large, that a file of blocks is full and no longer needed. */
const BLOCKS = 340
const SCRIPT_BYTES = 2_000
const NOTHING = { scripts: { has: () => false, all: () => [] }, spendings: new Set<string>() }

test('a block that a pruned node has deleted is missed in words that say what to do', { skip }, async () => {
  // Deleted are whole files of blocks, here of 64 kB, that are 288 blocks below the best one.
  await using node = await startBitcoind({ blocks: 0, args: ['-prune=1', '-fastprune'] })
  await node.rpc('generatetodescriptor', [BLOCKS, `raw(${'51'.repeat(SCRIPT_BYTES)})`])
  const lowest = await node.rpc<number>('pruneblockchain', [BLOCKS - 288])
  const source = sourceOf(node)
  const [deleted, kept] = await source.headersAt([1, BLOCKS])
  assert.ok(deleted && kept && lowest > 1)
  assert.deepEqual((await source.findingsIn(kept, NOTHING)).outputs, [])
  await assert.rejects(source.findingsIn(deleted, NOTHING), (error) => {
    assert.ok(error instanceof AppError)
    assert.equal(error.code, 'failed_precondition')
    assert.match(error.message, /has deleted block 1, which is needed.*ask another node too/)
    return true
  })
})

test('a node with block filters tells which blocks are worth reading, and one without that it cannot', {
  skip,
}, async () => {
  await using node = await startBitcoind({ args: ['-blockfilterindex=1'] })
  await using other = await startBitcoind({ blocks: 0 })
  const address = await node.rpc<string>('getnewaddress', ['', 'bech32'])
  await node.pay(address, 10_000n)
  await node.mine(3)
  const scripts = [Buffer.from(outputScript(address, 'regtest')).toString('hex')]
  const heights = await eventually(() => sourceOf(node).candidateHeights(scripts, 0), { what: 'the filters are there' })
  assert.ok(heights.includes(102))
  assert.ok(heights.length < 10, `${heights.length} blocks`)
  assert.equal((await sourceOf(node).candidateHeights(scripts, 103))?.includes(102), false)
  assert.equal(await sourceOf(other).candidateHeights(scripts, 0), undefined)
})

test('signets are told apart by their challenge', { skip }, async () => {
  await using node = await startBitcoind({ blocks: 0, signetChallenge: '51' })
  const { height, syncing } = await sourceOf(node, { network: 'signet', signetChallenge: '51' }).best()
  assert.deepEqual({ height, syncing }, { height: 0, syncing: false })
  await assert.rejects(sourceOf(node, { network: 'signet' }).best(), /another signet than the configured one/)
  await assert.rejects(
    sourceOf(node, { network: 'signet', signetChallenge: '52' }).best(),
    /another signet than the configured one/,
  )
})

test('the standing of a block is best, left or unknown', { skip }, async () => {
  await using node = await startBitcoind({ blocks: 3 })
  const source = sourceOf(node)
  const [header] = await source.headersAt([3])
  assert.ok(header)
  assert.equal(await source.standingOf(header), 'best')
  await node.rpc('invalidateblock', [header.hash])
  assert.equal(await source.standingOf(header), 'left')
  assert.equal(await source.standingOf({ hash: '00'.repeat(32), height: 3 }), 'unknown')
  assert.deepEqual(await source.headersAt([3, 1_000]), [], 'heights above the best block are left out')
})
