import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { unpackWheel } from './python-wheel.ts'
import { AcquireError, type AcquireOptions, type Acquisition, acquisition, privateCopy, type Tool } from './tool.ts'

/** A Python wheel that brings OpenSSL 1.1.1 with it, which Debian 12 has no more. */
const WHEEL = 'psycopg2-binary==2.9.5'
const LIBRARIES = 'psycopg2_binary.libs'
const VERSION = '1.1.1'

/**
 * OpenSSL 1.1's libssl, for tests: `command` is its path, `args` the library to be loaded before it. Throws AcquireError if it cannot be
 * had.
 */
export async function acquireOpenssl11(options: AcquireOptions = {}): Promise<Tool> {
  const wanted = acquisition(options)
  return await privateCopy(wanted, 'openssl-1.1', (folder) => fromWheel(options, wanted, folder))
}

async function fromWheel(options: AcquireOptions, wanted: Acquisition, folder: string): Promise<Tool> {
  await unpackWheel(options, wanted, WHEEL, folder)
  const names = await readdir(join(folder, LIBRARIES))
  const pathOf = (library: string) => {
    const name = names.find((each) => each.startsWith(`${library}-`) && each.endsWith('.so.1.1'))
    if (name === undefined) throw new AcquireError(`${WHEEL} has no ${library} of OpenSSL 1.1`)
    return join('{folder}', LIBRARIES, name)
  }
  return { command: pathOf('libssl'), args: [pathOf('libcrypto')], version: VERSION, from: 'Python wheel' }
}
