import { type AddressRange, formatAddress, parseAddress, parseRange } from '@tollward/contracts'
import { z } from 'zod'

/** Comma-separated addresses and CIDRs. */
const ranges = z.string().transform((text, context): AddressRange[] => {
  const parsed = list(text).map((entry) => parseRange(entry) ?? entry)
  for (const entry of parsed) {
    if (typeof entry === 'string') context.addIssue(`"${entry}" is no address or CIDR, or has bits beyond its prefix`)
  }
  return parsed.filter((entry) => typeof entry !== 'string')
})

/** Comma-separated single addresses. */
const addresses = z.string().transform((text, context): string[] =>
  list(text).map((entry) => {
    const address = parseAddress(entry)
    if (!address) context.addIssue(`"${entry}" is no address`)
    return address ? formatAddress(address) : entry
  }),
)

/** What both decision points are told. Spread it into the service's own schema. */
export const decisionConfig = {
  /** Where clients reach payment-verifier; 402 points there. */
  paymentUrl: z
    .url()
    .transform((url) => url.replace(/\/+$/, ''))
    .default('http://127.0.0.1:4020'),
  /** Addresses of this node, beside 127.0.0.1 and ::1, that no block touches. */
  guardedAddresses: addresses.prefault(''),
  /** Proxies in front whose X-Forwarded-For tells the client's address. None: the peer is the client. */
  trustedProxies: ranges.prefault(''),
} as const

function list(text: string): string[] {
  return text
    .split(',')
    .map((entry) => entry.trim())
    .filter((entry) => entry !== '')
}
