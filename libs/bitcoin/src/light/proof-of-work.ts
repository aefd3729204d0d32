import type { Network } from '../network.ts'
import { forged, type Header } from './header.ts'

/** What a network asks of the hash of a block. */
export interface ProofOfWorkRules {
  /** The easiest target, in compact form. */
  readonly limitBits: number
  /** Whether the target follows the time that blocks take. */
  readonly retargets: boolean
}

/** The consensus rules of each network. A signet's blocks are also signed, which headers do not show: its work is cheap. */
export const PROOF_OF_WORK: Readonly<Record<Network, ProofOfWorkRules>> = {
  regtest: { limitBits: 0x207fffff, retargets: false },
  signet: { limitBits: 0x1e0377ae, retargets: true },
  mainnet: { limitBits: 0x1d00ffff, retargets: true },
}

/** Blocks between two changes of the target. */
export const RETARGET_BLOCKS = 2_016
/** The time that they should take: two weeks. */
const RETARGET_SECONDS = 14 * 24 * 60 * 60
/** One change makes the target at most this many times easier or harder. */
const RETARGET_FACTOR_MAX = 4

const HASH_BITS = 256n
const SIGN_BIT = 0x0080_0000
const MANTISSA_BITS = 0x007f_ffff
/** Bytes of the mantissa. */
const MANTISSA_BYTES = 3

/** The target of a compact form. Throws AppError `invalid_argument` if it is negative, zero, or has more than 256 bits. */
export function targetOf(bits: number): bigint {
  const exponent = bits >>> 24
  const mantissa = BigInt(bits & MANTISSA_BITS)
  if ((bits & SIGN_BIT) !== 0) throw forged('The target is negative.')
  const shift = BigInt(8 * (exponent - MANTISSA_BYTES))
  const target = shift >= 0n ? mantissa << shift : mantissa >> -shift
  if (target === 0n) throw forged('The target is zero.')
  if (target >> HASH_BITS !== 0n) throw forged('The target has more than 256 bits.')
  return target
}

/** The compact form of a target. */
export function bitsOf(target: bigint): number {
  let exponent = Math.ceil(target.toString(16).length / 2)
  const shift = BigInt(8 * (exponent - MANTISSA_BYTES))
  let mantissa = Number(shift >= 0n ? target >> shift : target << -shift)
  if ((mantissa & SIGN_BIT) !== 0) {
    mantissa >>>= 8
    exponent += 1
  }
  return ((exponent << 24) | mantissa) >>> 0
}

/** How many hashes it takes on average to meet a target. */
export function workOf(bits: number): bigint {
  return (1n << HASH_BITS) / (targetOf(bits) + 1n)
}

/** The target after a period of blocks that began and ended at these times, in seconds. */
export function retargetedBits(bits: number, { limitBits }: ProofOfWorkRules, began: number, ended: number): number {
  const least = RETARGET_SECONDS / RETARGET_FACTOR_MAX
  const seconds = Math.min(Math.max(ended - began, least), RETARGET_SECONDS * RETARGET_FACTOR_MAX)
  const target = (targetOf(bits) * BigInt(seconds)) / BigInt(RETARGET_SECONDS)
  const limit = targetOf(limitBits)
  return bitsOf(target < limit ? target : limit)
}

/** Throws AppError `invalid_argument` unless the header's hash is as low as its own target says. */
export function assertWork({ hash, bits }: Header): void {
  if (BigInt(`0x${hash}`) > targetOf(bits)) throw forged('The block has not the work that its header claims.')
}
