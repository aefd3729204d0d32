import { type Network as AddressNetwork, networks } from 'bitcoinjs-lib'

/** The bitcoin networks that Tollward takes payments on. */
export const NETWORK_NAMES = ['regtest', 'signet', 'mainnet'] as const

export type Network = (typeof NETWORK_NAMES)[number]

interface NetworkFacts {
  /** Hash of block 0, as nodes show it: how a node is known to follow this network. Every signet has the same. */
  readonly genesisHash: string
  /** Prefixes of addresses. */
  readonly addresses: AddressNetwork
  /** Coin type of BIP-44; also tells which version bytes an account key has. */
  readonly coinType: 0 | 1
}

/** What differs between the networks. */
export const NETWORKS: Readonly<Record<Network, NetworkFacts>> = {
  regtest: {
    genesisHash: '0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206',
    addresses: networks.regtest,
    coinType: 1,
  },
  signet: {
    genesisHash: '00000008819873e925422c1ff0f99f7cc9bbb232af63a077a480a3633bee1ef6',
    addresses: networks.testnet,
    coinType: 1,
  },
  mainnet: {
    genesisHash: '000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f',
    addresses: networks.bitcoin,
    coinType: 0,
  },
}

/** Script that blocks of the public signet satisfy (BIP-325), in hexadecimal: how signets are told apart. */
export const PUBLIC_SIGNET_CHALLENGE =
  '512103ad5e0edad18cb1f0fc0d28a3d4f1f3e445640337489abb10404f2d1e086be430210359ef5021964fe22d6f8e05b2463c9540ce96883fe3b278760f048f5189f2e6c452ae'
