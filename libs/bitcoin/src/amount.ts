import { AppError } from '@tollward/errors'

const SATS_PER_BTC = 100_000_000n
const BTC_DECIMALS = 8
/** No amount can exceed all the bitcoin there will be. */
export const AMOUNT_SATS_MAX = 21_000_000n * SATS_PER_BTC

/** Sats as the decimal number of BTC that payment URIs carry: exact, without trailing zeros. Throws RangeError outside 0 to 21 million BTC. */
export function formatBtc(amountSats: bigint): string {
  if (amountSats < 0n || amountSats > AMOUNT_SATS_MAX) throw new RangeError('an amount is 0 to 21 million BTC')
  const decimals = (amountSats % SATS_PER_BTC).toString().padStart(BTC_DECIMALS, '0').replace(/0+$/, '')
  const whole = (amountSats / SATS_PER_BTC).toString()
  return decimals === '' ? whole : `${whole}.${decimals}`
}

/** Sats of a decimal number of BTC such as 0.0001, exactly. Throws AppError `invalid_argument` for anything else. */
export function parseBtc(text: string): bigint {
  const match = /^(\d{1,8})(?:\.(\d{1,8}))?$/.exec(text)
  if (match?.[1] === undefined)
    throw new AppError('invalid_argument', 'An amount is BTC with at most 8 decimals, such as 0.0001.')
  const amountSats = BigInt(match[1]) * SATS_PER_BTC + BigInt((match[2] ?? '').padEnd(BTC_DECIMALS, '0'))
  if (amountSats > AMOUNT_SATS_MAX) throw new AppError('invalid_argument', 'An amount is at most 21 million BTC.')
  return amountSats
}
