import { readFileSync } from 'node:fs'
import { createSecureContext } from 'node:tls'
import { readSecretFile } from '@tollward/runtime'
import type { Logger } from 'pino'

export interface CertificateFiles {
  readonly certFile: string
  readonly keyFile: string
  /** Whose certificates clients must have; without, none is asked for. */
  readonly clientCaFile: string | undefined
}

/** PEM. */
interface Loaded {
  readonly cert: string
  readonly key: string
  readonly ca?: string
}

/** The server's certificate, as its files say. */
export interface Certificates {
  readonly current: Loaded
  readonly demands: { readonly requestCert: boolean; readonly rejectUnauthorized: boolean }
  /** Calls back when the files have changed and are good. Gives back what ends that. */
  follow(changed: (loaded: Loaded) => void): () => void
}

/** Between two looks at the files; files that are replaced by links to others are seen too. */
const LOOK_EVERY_MS = 1000

/** Reads them; throws where they do not fit together. Afterwards, files that don't change nothing, and are logged once. */
export function openCertificates(files: CertificateFiles, log: Logger): Certificates {
  const isAsked = files.clientCaFile !== undefined
  const current = load(files)
  return {
    current,
    demands: { requestCert: isAsked, rejectUnauthorized: isAsked },
    follow: (changed) => {
      let known = JSON.stringify(current)
      let fault = ''
      const timer = setInterval(() => {
        try {
          const loaded = load(files)
          const text = JSON.stringify(loaded)
          fault = ''
          if (text === known) return
          changed(loaded)
          known = text
          log.info({ certFile: files.certFile }, 'certificate replaced')
        } catch (error) {
          const message = String(error)
          if (message !== fault) log.error({ err: error }, 'certificate not replaced: the one before stays in use')
          fault = message
        }
      }, LOOK_EVERY_MS)
      return () => clearInterval(timer)
    },
  }
}

function load({ certFile, keyFile, clientCaFile }: CertificateFiles): Loaded {
  const cert = readFileSync(certFile, 'utf8')
  const key = readSecretFile(keyFile)
  const loaded = clientCaFile === undefined ? { cert, key } : { cert, key, ca: readFileSync(clientCaFile, 'utf8') }
  // Throws unless the key is the certificate's.
  createSecureContext(loaded)
  return loaded
}
