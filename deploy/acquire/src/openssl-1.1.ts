import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { unpackWheel } from './python-wheel.ts'
import { AcquireError, type AcquireOptions, type Acquisition, acquisition, privateCopy, type Tool } from './tool.ts'

/** A Python wheel that brings OpenSSL 1.1.1 with it, which Debian 12 has no more. */
const WHEEL = 'psycopg2-binary==2.9.5'
const LIBRARIES = 'psycopg2_binary.libs'
const VERSION = '1.1.1'

/**
 * Paths of OpenSSL 1.1's libcrypto and libssl, for tests, in the order in which a process has to load them. Throws AcquireError if they
 * cannot be had.
 */
export async function acquireOpenssl11(options: AcquireOptions = {}): Promise<readonly string[]> {
  const wanted = acquisition(options)
  const { args } = await privateCopy(wanted, 'openssl-1.1', (folder) => fromWheel(options, wanted, folder))
  return args
}

async function fromWheel(options: AcquireOptions, wanted: Acquisition, folder: string): Promise<Tool> {
  const command = await unpackWheel(options, wanted, WHEEL, folder)
  const names = await readdir(join(folder, LIBRARIES))
  const pathOf = (library: string) => {
    const name = names.find((each) => each.startsWith(`${library}-`) && each.endsWith('.so.1.1'))
    if (name === undefined) throw new AcquireError(`${WHEEL} has no ${library} of OpenSSL 1.1`)
    return join('{folder}', LIBRARIES, name)
  }
  return { command, args: ['libcrypto', 'libssl'].map(pathOf), version: VERSION, from: 'Python wheel' }
}
