import { AppError } from '@tollward/errors'
import { address as addresses } from 'bitcoinjs-lib'
import { formatBtc, parseBtc } from './amount.ts'
import './ecc.ts'
import { NETWORKS, type Network } from './network.ts'

/** What a payment URI says, as far as an on-chain payer needs it. */
export interface PaymentRequest {
  readonly address: string
  /** Absent: the payer chooses. */
  readonly amountSats?: bigint
  readonly label?: string
  readonly message?: string
}

/** Longer ones are not read: wallets and QR codes end far below. */
const URI_LENGTH_MAX = 4096
/** Parameters that a payer must not see twice. */
const ONCE = ['amount', 'label', 'message'] as const

/** The BIP-321 URI that any wallet can pay: `bitcoin:<address>?amount=0.0001&label=…`. */
export function formatPaymentUri(request: PaymentRequest): string {
  const parameters = [
    ...(request.amountSats === undefined ? [] : [`amount=${formatBtc(request.amountSats)}`]),
    ...(request.label === undefined ? [] : [`label=${encodeURIComponent(request.label)}`]),
    ...(request.message === undefined ? [] : [`message=${encodeURIComponent(request.message)}`]),
  ]
  return `bitcoin:${request.address}${parameters.length === 0 ? '' : `?${parameters.join('&')}`}`
}

/**
 * Reads a BIP-321 URI that pays an on-chain address of the network. Unknown parameters are passed over, unless their name
 * begins with `req-`: those make the URI invalid. Throws AppError `invalid_argument` with what is wrong.
 */
export function parsePaymentUri(uri: string, network: Network): PaymentRequest {
  if (uri.length > URI_LENGTH_MAX) throw invalid(`is longer than ${URI_LENGTH_MAX} characters`)
  const match = /^bitcoin:([^?#]*)(?:\?([^#]*))?$/i.exec(uri)
  if (match === null) throw invalid('does not begin with bitcoin:')
  const address = match[1] ?? ''
  outputScript(address, network)
  const parameters = readParameters(match[2] ?? '')
  const amount = parameters.get('amount')
  const label = parameters.get('label')
  const message = parameters.get('message')
  return {
    address,
    ...(amount === undefined ? {} : { amountSats: parseBtc(amount) }),
    ...(label === undefined ? {} : { label }),
    ...(message === undefined ? {} : { message }),
  }
}

/** The script that an output to the address has. Throws AppError `invalid_argument` if it is no address of the network. */
export function outputScript(address: string, network: Network): Uint8Array {
  try {
    return addresses.toOutputScript(address, NETWORKS[network].addresses)
  } catch (error) {
    throw new AppError('invalid_argument', `That is not a ${network} address.`, { cause: error })
  }
}

function readParameters(query: string): ReadonlyMap<string, string> {
  const parameters = new Map<string, string>()
  for (const part of query.split('&').filter((text) => text !== '')) {
    const equals = part.indexOf('=')
    const key = decode(equals === -1 ? part : part.slice(0, equals)).toLowerCase()
    const value = decode(equals === -1 ? '' : part.slice(equals + 1))
    if (key.startsWith('req-')) throw invalid('demands something that is not supported here')
    if (parameters.has(key) && ONCE.some((name) => name === key)) throw invalid(`says ${key} twice`)
    parameters.set(key, value)
  }
  return parameters
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch (error) {
    throw invalid('has a broken percent escape', error)
  }
}

function invalid(why: string, cause?: unknown): AppError {
  return new AppError('invalid_argument', `The payment URI ${why}.`, { cause })
}
