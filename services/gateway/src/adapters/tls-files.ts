import { readFile, stat } from 'node:fs/promises'
import { createSecureContext, type SecureContextOptions } from 'node:tls'
import { readSecretFile } from '@tollward/runtime'
import type { Logger } from 'pino'
import type { GatewayMetrics } from '../metrics.ts'

/** PEM files. */
export interface TlsFiles {
  readonly certFile: string
  readonly keyFile: string
  /** Authorities that vouch for clients. */
  readonly clientCaFile: string | undefined
}

/** How often files are looked at: certificates are renewed days before they end. */
const CHECK_EVERY_MS = 5000

/** Reads them. Throws if they make no server. */
export async function readTlsFiles({ certFile, keyFile, clientCaFile }: TlsFiles): Promise<SecureContextOptions> {
  const read = {
    cert: await readFile(certFile, 'utf8'),
    key: readSecretFile(keyFile),
    ...(clientCaFile !== undefined && { ca: await readFile(clientCaFile, 'utf8') }),
  }
  createSecureContext(read)
  return read
}

/** Looks after the files: what is changed and usable is handed to `renew`. */
export interface TlsWatch extends Disposable {
  /** Looks now. */
  check(): Promise<void>
}

/** Begins to look after them. `current`: what is in use. */
export function watchTlsFiles(
  files: TlsFiles,
  current: SecureContextOptions,
  renew: (read: SecureContextOptions) => void,
  { log, metrics }: { readonly log: Logger; readonly metrics: GatewayMetrics },
): TlsWatch {
  let inUse = JSON.stringify(current)
  let refused = ''
  const check = async () => {
    const found = await stamp(files)
    if (found === refused) return
    try {
      const read = await readTlsFiles(files)
      if (JSON.stringify(read) === inUse) return
      renew(read)
      inUse = JSON.stringify(read)
      metrics.tlsReloads.inc({ result: 'taken' })
      log.info({ certFile: files.certFile }, 'certificate renewed')
    } catch (error) {
      // Told once for each state of the files.
      refused = found
      metrics.tlsReloads.inc({ result: 'refused' })
      log.error({ err: error, certFile: files.certFile }, 'certificate not renewed, the old one stays in use')
    }
  }
  const timer = setInterval(() => void check(), CHECK_EVERY_MS)
  return { check, [Symbol.dispose]: () => clearInterval(timer) }
}

async function stamp({ certFile, keyFile, clientCaFile }: TlsFiles): Promise<string> {
  const paths = [certFile, keyFile, ...(clientCaFile === undefined ? [] : [clientCaFile])]
  const stats = await Promise.allSettled(paths.map((path) => stat(path)))
  return stats
    .map((found) =>
      found.status === 'fulfilled' ? `${found.value.ino} ${found.value.mtimeMs} ${found.value.size}` : '',
    )
    .join(',')
}
