import { readFileSync } from 'node:fs'
import { AppError } from '@tollward/errors'

const ROUTES = { ipv4: '/proc/net/route', ipv6: '/proc/net/ipv6_route' }
const LOOPBACK = 'lo'

/** The interfaces that a default route leads through. AppError `failed_precondition` if there is none. */
export function defaultInterfaces(): string[] {
  const ipv4 = rows(ROUTES.ipv4).flatMap(([name, destination, , , , , , mask]) =>
    destination === '00000000' && mask === '00000000' && name !== undefined ? [name] : [],
  )
  const ipv6 = rows(ROUTES.ipv6).flatMap((row) => {
    const [destination = '', prefixLength] = row
    const name = row.at(-1)
    return /^0+$/.test(destination) && prefixLength === '00' && name !== undefined ? [name] : []
  })
  const names = [...new Set([...ipv4, ...ipv6])].filter((name) => name !== LOOPBACK)
  if (names.length > 0) return names
  throw new AppError(
    'failed_precondition',
    'No interface has a default route; name those to guard in TOLLWARD_INTERFACES.',
  )
}

function rows(file: string): string[][] {
  try {
    return readFileSync(file, 'utf8')
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
  } catch (error) {
    // A kernel without this version of IP.
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return []
    throw error
  }
}
