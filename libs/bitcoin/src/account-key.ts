import { AppError } from '@tollward/errors'
import type { BIP32Interface } from 'bip32'
import { payments } from 'bitcoinjs-lib'
import { descriptorChecksum } from './descriptor-checksum.ts'
import { bip32 } from './ecc.ts'
import { NETWORKS, type Network } from './network.ts'

/** An address of the account's external chain, and the script that pays it. */
export interface AccountAddress {
  readonly index: number
  readonly address: string
  readonly script: Uint8Array
}

/** The public half of a BIP-84 or BIP-86 account: it gives addresses and can spend nothing. */
export interface AccountKey {
  readonly network: Network
  /** The account's external chain as wallets take it (`importdescriptors`), with BIP-380's checksum. */
  readonly descriptor: string
  /** The address 0/index below the account: P2WPKH (BIP-84) or P2TR (BIP-86). Index 0 to 2³¹ - 1. */
  address(index: number): AccountAddress
}

interface KeyVersion {
  readonly public: number
  readonly private: number
  readonly coinType: 0 | 1
}

const XPUB: KeyVersion = { public: 0x0488b21e, private: 0x0488ade4, coinType: 0 }
const TPUB: KeyVersion = { public: 0x043587cf, private: 0x04358394, coinType: 1 }
/** SLIP-132 version bytes by the letters they begin with; y and u keys are for another kind of address. */
const KEY_VERSIONS: Readonly<Record<string, KeyVersion>> = {
  xpub: XPUB,
  zpub: { public: 0x04b24746, private: 0x04b2430c, coinType: 0 },
  tpub: TPUB,
  vpub: { public: 0x045f1cf6, private: 0x045f18bc, coinType: 1 },
}
/** m / purpose' / coin' / account'. */
const ACCOUNT_DEPTH = 3
const EXTERNAL_CHAIN = 0
/** Taproot's keys are without the byte that says which half of the curve they are on (BIP-340). */
const X_ONLY_FROM = 1
/** Above are BIP-32's hardened children, which a public key cannot derive. */
export const ADDRESS_INDEX_MAX = 0x7fff_ffff

const KEY = /^(?<letters>[a-z]p(?:ub|rv))[1-9A-HJ-NP-Za-km-z]{100,112}$/
const DESCRIPTOR =
  /^(?<kind>wpkh|tr)\((?<origin>\[[0-9a-f]{8}(?:\/\d+['h])*\])?(?<key>[a-z]p(?:ub|rv)[1-9A-HJ-NP-Za-km-z]+)(?:\/0\/\*)\)(?:#(?<checksum>[a-z0-9]{8}))?$/
/** A key by itself does not say of which kind its addresses are. */
const KIND_OF_KEYS = 'wpkh'

/**
 * Reads the account key of a treasurer: a BIP-84 account's xpub, zpub, tpub or vpub, or a descriptor
 * `wpkh([fingerprint/84h/0h/0h]xpub…/0/*)` or `tr([fingerprint/86h/0h/0h]xpub…/0/*)` with or without checksum. Throws AppError
 * `invalid_argument`, which never repeats the key, for anything else: a private key, a key of another network, another kind of
 * address.
 */
export function parseAccountKey(text: string, network: Network): AccountKey {
  const { kind = KIND_OF_KEYS, origin = '', key = text, checksum } = DESCRIPTOR.exec(text)?.groups ?? {}
  if (checksum !== undefined && descriptorChecksum(text.slice(0, -(checksum.length + 1))) !== checksum) {
    throw invalid("The descriptor's checksum is wrong: copy it again.")
  }
  const account = readKey(key, network)
  if (key === text && account.depth !== ACCOUNT_DEPTH) {
    throw invalid("The key is not of an account: give the one at m/84'/coin'/account', or a descriptor.")
  }
  const external = account.derive(EXTERNAL_CHAIN)
  return {
    network,
    descriptor: descriptorOf(kind, origin, account, network),
    address: (index) => addressAt(external, index, kind, network),
  }
}

function descriptorOf(kind: string, origin: string, account: BIP32Interface, network: Network): string {
  // Descriptors know only the first letters of each pair, whatever the addresses are (BIP-380).
  account.network = { wif: 0, bip32: NETWORKS[network].coinType === 0 ? XPUB : TPUB }
  const descriptor = `${kind}(${origin}${account.toBase58()}/0/*)`
  return `${descriptor}#${descriptorChecksum(descriptor)}`
}

function readKey(key: string, network: Network): BIP32Interface {
  const letters = KEY.exec(key)?.groups?.letters ?? ''
  if (letters.endsWith('prv')) throw invalid('That is a private key. Keep it off servers, and give the public one.')
  const version = KEY_VERSIONS[letters]
  if (version === undefined) {
    throw invalid('That is no account key: give an xpub, zpub, tpub or vpub, or a descriptor wpkh(…/0/*) or tr(…/0/*).')
  }
  if (version.coinType !== NETWORKS[network].coinType) {
    throw invalid(`A key that begins with ${letters} is not for ${network}.`)
  }
  try {
    return bip32.fromBase58(key, { wif: 0, bip32: version })
  } catch (error) {
    throw new AppError('invalid_argument', 'The account key has a wrong checksum or content: copy it again.', {
      cause: error,
    })
  }
}

function addressAt(external: BIP32Interface, index: number, kind: string, network: Network): AccountAddress {
  if (!Number.isInteger(index) || index < 0 || index > ADDRESS_INDEX_MAX) throw new RangeError('no such address index')
  const { publicKey } = external.derive(index)
  const { addresses } = NETWORKS[network]
  const { address, output } =
    kind === 'tr'
      ? payments.p2tr({ internalPubkey: publicKey.subarray(X_ONLY_FROM), network: addresses })
      : payments.p2wpkh({ pubkey: publicKey, network: addresses })
  if (address === undefined || output === undefined) throw new Error('a public key gave no address')
  return { index, address, script: output }
}

function invalid(message: string): AppError {
  return new AppError('invalid_argument', message)
}
