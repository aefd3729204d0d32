import { readFile, stat } from 'node:fs/promises'
import { createSecureContext } from 'node:tls'
import type { Logger } from 'pino'
import type { Counter } from 'prom-client'
import { readSecretFile } from './config.ts'

/** PEM files of a server. */
export interface TlsFiles {
  readonly certFile: string
  readonly keyFile: string
  /** Authorities that vouch for clients. */
  readonly clientCaFile: string | undefined
}

/** What stands in them: options of Node's TLS servers. */
export interface TlsMaterial {
  readonly cert: string
  readonly key: string
  readonly ca?: string
}

/** How often files are looked at, by their times and sizes alone; certificates are renewed days before they end. */
const CHECK_EVERY_MS = 1000

/** Reads them. Throws if they make no server, or others may read the key. */
export async function readTlsFiles({ certFile, keyFile, clientCaFile }: TlsFiles): Promise<TlsMaterial> {
  const read = {
    cert: await readFile(certFile, 'utf8'),
    key: readSecretFile(keyFile),
    ...(clientCaFile !== undefined && { ca: await readFile(clientCaFile, 'utf8') }),
  }
  // Throws unless the key is the certificate's.
  createSecureContext(read)
  return read
}

/** Looks after the files: what is changed and usable is handed to `renew`. */
export interface TlsWatch extends Disposable {
  /** Looks now. */
  check(): Promise<void>
}

/** Begins to look after them. `current`: what is in use; `reloads` counts what became of changes. */
export function watchTlsFiles(
  files: TlsFiles,
  current: TlsMaterial,
  renew: (read: TlsMaterial) => void,
  { log, reloads }: { readonly log: Logger; readonly reloads: Counter<'result'> },
): TlsWatch {
  let inUse = JSON.stringify(current)
  let known = ''
  const check = async () => {
    const found = await stamp(files)
    if (found === known) return
    try {
      const read = await readTlsFiles(files)
      known = found
      if (JSON.stringify(read) === inUse) return
      renew(read)
      inUse = JSON.stringify(read)
      reloads.inc({ result: 'taken' })
      log.info({ certFile: files.certFile }, 'certificate renewed')
    } catch (error) {
      // Told once for each state of the files.
      known = found
      reloads.inc({ result: 'refused' })
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
