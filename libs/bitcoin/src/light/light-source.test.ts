import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { type AddressInfo, createServer } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  type Bitcoind,
  eventually,
  requires,
  startBitcoind,
  startElectrumx,
  temporaryDirectory,
} from '@tollward/testkit'
import {
  type ChainChange,
  ChainFollower,
  LightSource,
  type LightSourceOptions,
  outputScript,
  type SourceState,
  type VanishedTransaction,
  type WatchedOutput,
} from '../mod.ts'
import { type Answer, changedElectrum, esploraOf } from './test-servers.ts'

const skip = await requires({ tools: ['bitcoind', 'electrumx'] })
const skipTls = await requires({ tools: ['bitcoind', 'electrumx', 'openssl'] })
const AMOUNT_SATS = 12_345n
const INDEXED = { args: ['-txindex'] }
const POLL_INTERVAL_MS = 100
/** An index follows its node at some distance. */
const IN_TIME = { timeoutMs: 30_000 }

/** A source, what it told of its servers, and a follower on it. */
function light(servers: string[], options: Partial<LightSourceOptions> = {}) {
  const told: { name: string; state: SourceState; why: string | undefined }[] = []
  const source = new LightSource({
    ...{ network: 'regtest', servers, timeoutMs: 20_000, ...options },
    onState: (name, state, error) => told.push({ name, state, why: error?.message }),
  })
  const scripts = new Set<string>()
  const watched = {
    scripts: { has: (script: string) => scripts.has(script), all: () => scripts },
    spendings: new Set(),
  }
  const watch = (address: string) => scripts.add(Buffer.from(outputScript(address, 'regtest')).toString('hex'))
  const stateOf = (url: string) => source.states.find(({ name }) => name === new URL(url).host)?.state
  /** Asks until it has this best block of the node's. */
  const reaches = async (node: Bitcoind) => {
    const hash = await node.rpc<string>('getbestblockhash')
    return await eventually(
      async () => {
        const best = await source.best()
        return best.hash === hash && best
      },
      { what: 'the source has the best block', ...IN_TIME },
    )
  }
  const close = () => source[Symbol.asyncDispose]()
  return { source, scripts, watched, watch, told, stateOf, reaches, [Symbol.asyncDispose]: close }
}

function follow({ source, scripts }: ReturnType<typeof light>) {
  const changes: ChainChange[] = []
  const seen: WatchedOutput[] = []
  const vanished: VanishedTransaction[] = []
  const follower = new ChainFollower({
    ...{ source, known: [], pollIntervalMs: POLL_INTERVAL_MS },
    handlers: {
      scripts: { has: (script) => scripts.has(script), all: () => scripts },
      unconfirmedTxids: () => new Set(seen.map(({ txid }) => txid)),
      onVanished: async (transactions) => void vanished.push(...transactions),
      onChange: async (change) => void changes.push(change),
      onMempool: async (outputs) => void seen.push(...outputs),
      onTrouble: () => undefined,
    },
  })
  const confirmed = () =>
    changes.flatMap(({ connected }) =>
      connected.flatMap(({ outputs, height }) => outputs.map(({ txid }) => ({ txid, height }))),
    )
  return { changes, seen, vanished, confirmed, follower, [Symbol.asyncDispose]: () => follower[Symbol.asyncDispose]() }
}

const newAddress = (node: Bitcoind) => node.rpc<string>('getnewaddress', ['', 'bech32'])

for (const kind of ['Electrum', 'Esplora']) {
  test(`${kind}: a payment is seen, proven in its block, taken back and proven again`, { skip }, async () => {
    await using node = await startBitcoind(INDEXED)
    await using server = kind === 'Electrum' ? await startElectrumx(node) : await esploraOf(node)
    await using chain = light([server.url])
    const address = await newAddress(node)
    chain.watch(address)
    await using following = follow(chain)
    await eventually(() => following.follower.caughtUp, { what: 'the follower has the tip', ...IN_TIME })
    const txid = await node.pay(address, AMOUNT_SATS)
    const [output] = await eventually(() => following.seen.length > 0 && following.seen, {
      what: 'it is seen',
      ...IN_TIME,
    })
    assert.deepEqual([output?.txid, output?.amountSats], [txid, AMOUNT_SATS])
    const [hash = ''] = await node.mine(1)
    const [first] = await eventually(() => following.confirmed().length > 0 && following.confirmed(), {
      ...{ what: 'it is confirmed', ...IN_TIME },
    })
    assert.deepEqual(first, { txid, height: 102 })
    const { mediantime } = await node.rpc<{ mediantime: number }>('getblockheader', [hash])
    assert.equal(following.changes.at(-1)?.connected[0]?.medianTimePastMs, mediantime * 1000)

    await node.rpc('invalidateblock', [hash])
    await node.rpc('generateblock', [await newAddress(node), []])
    await node.rpc('generateblock', [await newAddress(node), []])
    await eventually(() => following.changes.some(({ disconnected }) => disconnected[0]?.hash === hash), {
      ...{ what: 'it is taken back', ...IN_TIME },
    })
    await node.mine(1)
    await eventually(() => following.confirmed().some(({ height }) => height === 104), {
      ...{ what: 'it is confirmed again', ...IN_TIME },
    })
    assert.deepEqual(chain.stateOf(server.url), 'equal')
    assert.deepEqual(following.vanished, [])
    assert.deepEqual(await chain.source.candidateHeights([...chain.scripts], 0), [104])
    assert.deepEqual(await chain.source.candidateHeights([...chain.scripts], 105), [])
  })
}

test('headers are those of the node, with its work', { skip }, async () => {
  await using node = await startBitcoind(INDEXED)
  await using server = await startElectrumx(node)
  await using chain = light([server.url])
  const best = await chain.reaches(node)
  const [header] = await chain.source.headersAt([best.height, best.height + 1])
  const told = await node.rpc<{ chainwork: string; mediantime: number; previousblockhash: string }>('getblockheader', [
    best.hash,
  ])
  assert.equal(best.chainWork, BigInt(`0x${told.chainwork}`))
  assert.equal(header?.previousHash, told.previousblockhash)
  assert.equal(header.medianTimePastMs, told.mediantime * 1000)
  assert.equal(await chain.source.standingOf(best), 'best')
  assert.equal(await chain.source.standingOf({ ...best, hash: '00'.repeat(32) }), 'left')
  assert.equal(await chain.source.standingOf({ hash: '00'.repeat(32), height: best.height + 1 }), 'unknown')
})

test('by TLS only a server that its certificate vouches for is asked', { skip: skipTls }, async () => {
  await using node = await startBitcoind(INDEXED)
  await using directory = await temporaryDirectory('tollward-electrum-tls-')
  const files = { certificateFile: join(directory.path, 'cert.pem'), keyFile: join(directory.path, 'key.pem') }
  const made = [
    '-x509',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-256',
    '-nodes',
    '-days',
    '1',
    '-subj',
    '/CN=x',
  ]
  const subject = ['-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', files.keyFile, '-out', files.certificateFile]
  execFileSync('openssl', ['req', ...made, ...subject], { stdio: 'ignore' })
  await using server = await startElectrumx(node, { certificate: files })
  await using chain = light([server.url], { ca: await readFile(files.certificateFile, 'utf8') })
  await chain.reaches(node)
  await using unvouched = light([server.url])
  await assert.rejects(unvouched.source.best(), { code: 'unavailable' })
})

test('a server that is gone is told of, and found again', { skip }, async () => {
  await using node = await startBitcoind(INDEXED)
  await using server = await startElectrumx(node)
  await using chain = light([server.url])
  await chain.reaches(node)
  await server.kill()
  await assert.rejects(chain.source.best(), { code: 'unavailable' })
  assert.equal(chain.stateOf(server.url), 'silent')
  await server.start()
  await node.mine(1)
  await chain.reaches(node)
  assert.equal(chain.stateOf(server.url), 'equal')
})

/** What a server may say instead of the truth, and what gives it away. */
const LIES: readonly { what: string; why: RegExp; change: (answer: Answer, now: { payer: string }) => unknown }[] = [
  {
    what: 'a payment of more than was paid',
    why: /not in the block/,
    change: ({ method, params, result }, { payer }) =>
      method === 'blockchain.transaction.get' && params[0] === payer
        ? String(result).replace(littleEndian(AMOUNT_SATS), littleEndian(AMOUNT_SATS * 10n))
        : result,
  },
  {
    what: 'a proof with another hash',
    why: /not in the block/,
    change: ({ method, result }) =>
      method === 'blockchain.transaction.get_merkle'
        ? { ...Object(result), merkle: Object(result).merkle.map(() => '11'.repeat(32)) }
        : result,
  },
  {
    what: 'a proof that is deeper than the tree',
    why: /as deep/,
    change: ({ method, result }) =>
      method === 'blockchain.transaction.get_merkle'
        ? { ...Object(result), merkle: [...Object(result).merkle, '11'.repeat(32)] }
        : result,
  },
  {
    what: 'another position',
    why: /position|not in the block|repeated/,
    change: ({ method, result }) =>
      method === 'blockchain.transaction.get_merkle' ? { ...Object(result), pos: Object(result).pos + 2 } : result,
  },
  {
    what: 'a coinbase that is none',
    why: /no coinbase/,
    change: ({ method, result }, { payer }) =>
      method === 'blockchain.transaction.id_from_pos' ? { ...Object(result), tx_hash: payer } : result,
  },
  {
    what: 'nothing of a payment',
    why: /holds a payment back/,
    change: ({ method, result }) => {
      if (method === 'blockchain.scripthash.get_history') return []
      return method === 'blockchain.scripthash.subscribe' ? null : result
    },
  },
]

test('a server that lies about a payment is found out, and the payment is known from another one', {
  skip,
  concurrency: LIES.length,
}, async (t) => {
  await using node = await startBitcoind(INDEXED)
  await using honest = await startElectrumx(node)
  const address = await newAddress(node)
  const payer = await node.pay(address, AMOUNT_SATS)
  await node.pay(await newAddress(node), AMOUNT_SATS)
  await node.mine(1)
  const cases = LIES.map(({ what, why, change }) =>
    t.test(what, async () => {
      await using liar = await changedElectrum(honest.url)
      liar.change = (answer) => change(answer, { payer })
      await using several = light([liar.url, honest.url])
      several.watch(address)
      await several.reaches(node)
      await eventually(async () => (await several.source.best()) && several.stateOf(liar.url) === 'equal', {
        ...{ what: 'both have the block', ...IN_TIME },
      })
      const block = await several.source.best()
      const { outputs } = await several.source.findingsIn(block, several.watched)
      assert.deepEqual(
        outputs.map(({ txid, amountSats }) => ({ txid, amountSats })),
        [{ txid: payer, amountSats: AMOUNT_SATS }],
      )
      assert.equal(several.stateOf(liar.url), 'lying')
      assert.match(several.told.find(({ state }) => state === 'lying')?.why ?? '', why)
      assert.equal(several.stateOf(honest.url), 'equal')
    }),
  )
  await Promise.all(cases)
})

test('what only a liar says is not believed', { skip }, async () => {
  await using node = await startBitcoind(INDEXED)
  await using server = await startElectrumx(node)
  await using liar = await changedElectrum(server.url)
  const address = await newAddress(node)
  await node.pay(address, AMOUNT_SATS)
  await node.mine(1)
  liar.change = ({ method, result }) =>
    method === 'blockchain.transaction.get_merkle' ? { ...Object(result), pos: Object(result).pos + 1 } : result
  await using alone = light([liar.url])
  alone.watch(address)
  const block = await alone.reaches(node)
  await assert.rejects(alone.source.findingsIn(block, alone.watched), { code: 'unavailable' })
  assert.equal(alone.stateOf(liar.url), 'lying')
  await assert.rejects(alone.source.best(), { code: 'unavailable' })
})

test('an Esplora that changes a block is found out', { skip }, async () => {
  await using node = await startBitcoind(INDEXED)
  await using liar = await esploraOf(node)
  await using honest = await esploraOf(node)
  const address = await newAddress(node)
  const txid = await node.pay(address, AMOUNT_SATS)
  await node.mine(1)
  liar.change = ({ method, result }) =>
    method.endsWith('/raw') && Buffer.isBuffer(result)
      ? Buffer.from(result.toString('hex').replace(littleEndian(AMOUNT_SATS), littleEndian(1_000n)), 'hex')
      : result
  await using chain = light([liar.url, honest.url])
  chain.watch(address)
  const block = await chain.reaches(node)
  const { outputs } = await chain.source.findingsIn(block, chain.watched)
  assert.deepEqual(
    outputs.map((output) => output.txid),
    [txid],
  )
  assert.equal(chain.stateOf(liar.url), 'lying')
})

test('a server that lags, or shows a chain with less work, is not followed', { skip }, async () => {
  await using node = await startBitcoind(INDEXED)
  await using server = await startElectrumx(node)
  await using laggard = await changedElectrum(server.url)
  await using other = await startBitcoind({ ...INDEXED, blocks: 150 })
  await using shorter = await esploraOf(node)
  await using longer = await esploraOf(other)
  const { height } = await (async () => ({ height: await node.rpc<number>('getblockcount') }))()
  laggard.change = ({ method, result }) =>
    method === 'blockchain.headers.subscribe' ? { ...Object(result), height } : result
  await node.mine(3)
  await using chain = light([laggard.url, server.url])
  await chain.reaches(node)
  assert.equal(chain.stateOf(laggard.url), 'behind')
  // It does not have the block, so there are too few to say what is in it.
  await assert.rejects(chain.source.findingsIn(await chain.source.best(), chain.watched), { code: 'unavailable' })

  await using split = light([shorter.url, longer.url])
  await split.reaches(other)
  assert.deepEqual([split.stateOf(shorter.url), split.stateOf(longer.url)], ['behind', 'equal'])
})

test('a server that invents blocks, or has another block at the checkpoint, is found out', { skip }, async () => {
  await using node = await startBitcoind(INDEXED)
  await using liar = await esploraOf(node)
  await using server = await esploraOf(node)
  const tip = await node.rpc<string>('getbestblockhash')
  liar.change = ({ method, result }) => {
    // A header whose time and nonce nobody has found.
    if (method === `/block/${tip}/header`) return `${String(result).slice(0, 136)}ffff7f2100000000`
    return result
  }
  await using chain = light([liar.url, server.url])
  await chain.reaches(node)
  assert.equal(chain.stateOf(liar.url), 'lying')
  assert.equal(chain.stateOf(server.url), 'equal')
  const [checkpoint] = await chain.source.headersAt([50])
  await using other = await startBitcoind({ ...INDEXED, blocks: 60 })
  await using stranger = await esploraOf(other)
  await using strangers = light([stranger.url], { checkpoint: { hash: checkpoint?.hash ?? '', height: 50 } })
  await assert.rejects(strangers.source.best(), { code: 'failed_precondition' })
  assert.equal(strangers.stateOf(stranger.url), 'wrong-network')
})

test('a server that answers nothing, or nonsense, is left and does not keep others waiting', { skip }, async () => {
  await using node = await startBitcoind(INDEXED)
  await using honest = await esploraOf(node)
  // The second is what a web server says.
  const sayings = ['', 'HTTP/1.1 200 OK\r\n\r\nno\n', '{"id":0,"result":[]}\n{"id":1,"result":{"height":-1}}\n[]\n']
  for (const saying of sayings) {
    const server = createServer((socket) =>
      socket
        .on('error', () => socket.destroy())
        .resume()
        .write(saying),
    )
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    // Ends only when nothing is left open.
    await using _closing = { [Symbol.asyncDispose]: async () => void (await new Promise((done) => server.close(done))) }
    const url = `tcp://127.0.0.1:${(server.address() as AddressInfo).port}`
    await using chain = light([url, honest.url], { timeoutMs: 1_000 })
    await chain.reaches(node)
    assert.equal(chain.stateOf(url), saying === '' ? 'silent' : 'lying')
    assert.equal(chain.stateOf(honest.url), 'equal')
  }
})

test('what a server calls a transaction is it, or is not taken', { skip }, async () => {
  await using node = await startBitcoind(INDEXED)
  await using liar = await esploraOf(node)
  const [one, other] = [await node.pay(await newAddress(node), 1_000n), await node.pay(await newAddress(node), 2_000n)]
  const genuine = Buffer.from(await node.rpc<string>('getrawtransaction', [other]), 'hex')
  await using chain = light([liar.url])
  await chain.reaches(node)
  const found = await chain.source.transactions([other, '00'.repeat(32)])
  assert.deepEqual([found[0] && Buffer.from(found[0]), found[1]], [genuine, undefined])
  liar.change = ({ method, result }) => (method === `/tx/${one}/raw` ? genuine : result)
  assert.deepEqual(await chain.source.transactions([one]), [undefined])
  assert.equal(chain.stateOf(liar.url), 'lying')
})

/** Eight bytes, as amounts are in transactions, in hexadecimal. */
function littleEndian(amountSats: bigint): string {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(amountSats)
  return bytes.toString('hex')
}
