import { BIP32Factory } from 'bip32'
import { initEccLib } from 'bitcoinjs-lib'
import * as secp256k1 from 'tiny-secp256k1'

// bitcoinjs-lib checks the curve points of taproot addresses with what it is given here.
initEccLib(secp256k1)

/** BIP-32 on libsecp256k1. */
export const bip32 = BIP32Factory(secp256k1)
