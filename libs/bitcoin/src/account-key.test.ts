import assert from 'node:assert/strict'
import { test } from 'node:test'
import { descriptorChecksum } from './descriptor-checksum.ts'
import { bip32 } from './ecc.ts'
import { type Network, outputScript, parseAccountKey } from './mod.ts'

// BIP-84's published vectors, of the mnemonic "abandon … about".
const ZPUB =
  'zpub6rFR7y4Q2AijBEqTUquhVz398htDFrtymD9xYYfG1m4wAcvPhXNfE3EfH1r1ADqtfSdVCToUG868RvUUkgDKf31mGDtKsAYz2oz2AGutZYs'
const FIRST = 'bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu'
const SECOND = 'bc1qnjg0jd8228aq7egyzacy8cys3knf9xvrerkf9g'

// BIP-86's published vectors, of the same mnemonic.
const TAPROOT_XPUB =
  'xpub6BgBgsespWvERF3LHQu6CnqdvfEvtMcQjYrcRzx53QJjSxarj2afYWcLteoGVky7D3UKDP9QyrLprQ3VCECoY49yfdDEHGCtMMj92pReUsQ'
const TAPROOT_FIRST = 'bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr'
const TAPROOT_SECOND = 'bc1p4qhjn9zdvkux4e44uhx8tc55attvtyu358kutcqkudyccelu0was9fqzwh'

const seed = Buffer.from(`${'00'.repeat(31)}01`, 'hex')
const keyOf = (network: Network, path: string) => {
  const version =
    network === 'mainnet' ? { public: 0x0488b21e, private: 0x0488ade4 } : { public: 0x043587cf, private: 0x04358394 }
  return bip32.fromSeed(seed, { wif: 0x80, bip32: version }).derivePath(path)
}
const TPUB = keyOf('regtest', "m/84'/1'/0'").neutered().toBase58()

const refuses = (key: string, network: Network, message: RegExp) =>
  assert.throws(
    () => parseAccountKey(key, network),
    (error) => {
      assert.ok(error instanceof Error)
      assert.match(error.message, message)
      assert.ok(key.length < 20 || !error.message.includes(key.slice(4, 40)), 'the message repeats the key')
      return true
    },
  )

test("BIP-84's account key gives BIP-84's addresses", () => {
  const account = parseAccountKey(ZPUB, 'mainnet')
  assert.equal(account.address(0).address, FIRST)
  assert.equal(account.address(1).address, SECOND)
  assert.deepEqual(account.address(0).script, outputScript(FIRST, 'mainnet'))
})

test('zpub, xpub and descriptor of one account give the same addresses', () => {
  const key = bip32.fromBase58(ZPUB, { wif: 0, bip32: { public: 0x04b24746, private: 0x04b2430c } })
  key.network = { wif: 0, bip32: { public: 0x0488b21e, private: 0x0488ade4 } }
  const xpub = key.toBase58()
  const descriptor = `wpkh([73c5da0a/84h/0h/0h]${xpub}/0/*)`
  const forms = [xpub, `wpkh(${xpub}/0/*)`, descriptor, `${descriptor}#${descriptorChecksum(descriptor)}`]
  for (const form of [...forms, `wpkh([73c5da0a/84'/0'/0']${xpub}/0/*)`]) {
    assert.equal(parseAccountKey(form, 'mainnet').address(1).address, SECOND)
  }
})

test("BIP-86's account key gives BIP-86's addresses", () => {
  const account = parseAccountKey(`tr([73c5da0a/86h/0h/0h]${TAPROOT_XPUB}/0/*)`, 'mainnet')
  assert.equal(account.address(0).address, TAPROOT_FIRST)
  assert.equal(account.address(1).address, TAPROOT_SECOND)
  assert.deepEqual(account.address(0).script, outputScript(TAPROOT_FIRST, 'mainnet'))
})

test('every form of an account is given on as a descriptor that wallets take, and that is the same account', () => {
  const origin = '[73c5da0a/84h/0h/0h]'
  const { descriptor } = parseAccountKey(ZPUB, 'mainnet')
  assert.match(descriptor, /^wpkh\(xpub\w+\/0\/\*\)#\w{8}$/)
  const withOrigin = descriptor.replace('(', `(${origin}`).replace(/#.*/, '')
  for (const form of [descriptor, withOrigin, `tr([73c5da0a/86h/0h/0h]${TAPROOT_XPUB}/0/*)`]) {
    const account = parseAccountKey(form, 'mainnet')
    assert.equal(account.descriptor.replace(/#.*/, ''), form.replace(/#.*/, ''))
    assert.equal(parseAccountKey(account.descriptor, 'mainnet').address(1).address, account.address(1).address)
  }
  assert.match(parseAccountKey(TPUB, 'signet').descriptor, /^wpkh\(tpub/)
})

test("a descriptor's checksum is kept to", () => {
  // BIP-380's own vector.
  assert.equal(descriptorChecksum('raw(deadbeef)'), '89f8spxm')
  refuses(`wpkh(${TPUB}/0/*)#qqqqqqqq`, 'regtest', /checksum/)
})

test('one account has addresses of the network it is used on', () => {
  assert.match(parseAccountKey(TPUB, 'regtest').address(0).address, /^bcrt1q/)
  assert.match(parseAccountKey(TPUB, 'signet').address(0).address, /^tb1q/)
})

test('a key of another network, a private key and what is no account key are refused without being repeated', () => {
  refuses(TPUB, 'mainnet', /not for mainnet/)
  refuses(ZPUB, 'regtest', /not for regtest/)
  refuses(ZPUB, 'signet', /not for signet/)
  refuses(keyOf('regtest', "m/84'/1'/0'").toBase58(), 'regtest', /private key/)
  refuses(`wpkh(${keyOf('regtest', "m/84'/1'/0'").toBase58()}/0/*)`, 'regtest', /private key/)
  refuses(keyOf('regtest', "m/84'/1'").neutered().toBase58(), 'regtest', /not of an account/)
  refuses(`${ZPUB.slice(0, -1)}t`, 'mainnet', /checksum/)
  refuses(`y${ZPUB.slice(1)}`, 'mainnet', /no account key/)
  refuses(`wpkh(${TPUB}/1/*)`, 'regtest', /no account key/)
  refuses(`tr(${TPUB}/0/*,pk(${TPUB}/0/*))`, 'regtest', /no account key/)
  refuses(`pkh(${TPUB}/0/*)`, 'regtest', /no account key/)
  for (const nonsense of ['', 'xpub', ' ', FIRST]) refuses(nonsense, 'mainnet', /no account key/)
})

test('an index that BIP-32 cannot derive is refused', () => {
  const account = parseAccountKey(TPUB, 'regtest')
  for (const index of [-1, 0.5, 2 ** 31, Number.NaN]) assert.throws(() => account.address(index), RangeError)
  assert.ok(account.address(2 ** 31 - 1).address)
})
