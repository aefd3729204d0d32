import { type AddressRange, parseRange } from '@tollward/contracts'
import { type DetectorSettings, durationMs } from '@tollward/documents'
import { AppError } from '@tollward/errors'

/** More than `connections` new connections from one address within `withinSeconds` are a flood. */
export interface FloodSettings {
  readonly connections: number
  readonly withinSeconds: number
  readonly blockForMs: number
  readonly mode: 'block' | 'observe'
}

/** More than `ports` different ports tried by one address within `withinSeconds` are a scan. */
export interface ScanSettings {
  readonly ports: number
  readonly withinSeconds: number
}

/** What the detectors go by; a detector without settings is off. */
export interface Settings {
  readonly flood?: FloodSettings
  readonly scan?: ScanSettings
  readonly allow: readonly AddressRange[]
}

/**
 * In force until an operator applies DetectorSettings. A browser opens six connections, a CI runner dozens, fifty clients
 * behind one address that reconnect together three hundred; tools that flood open thousands a second. A scan for services
 * tries a thousand ports; no client tries a hundred closed ones.
 */
export const DEFAULT_SETTINGS: Settings = {
  flood: { connections: 400, withinSeconds: 2, blockForMs: 5 * 60_000, mode: 'block' },
  scan: { ports: 100, withinSeconds: 10 },
  allow: [],
}

/** What a document sets. AppError `invalid_argument` if one of its ranges is none. */
export function settingsOf({ spec }: DetectorSettings): Settings {
  const { connectionFlood, portScan } = spec
  return {
    ...(connectionFlood && { flood: { ...connectionFlood, blockForMs: durationMs(connectionFlood.blockFor) } }),
    ...(portScan && { scan: portScan }),
    allow: spec.allow.map(rangeOf),
  }
}

function rangeOf(text: string): AddressRange {
  const range = parseRange(text)
  if (range === undefined) {
    throw new AppError(
      'invalid_argument',
      `${text} is neither an address nor a CIDR without host bits; correct spec.allow.`,
    )
  }
  return range
}
