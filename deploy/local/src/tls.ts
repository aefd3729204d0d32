import 'reflect-metadata'
import { webcrypto } from 'node:crypto'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import * as x509 from '@peculiar/x509'
import type { Paths } from './paths.ts'
import { writeSecret } from './secret-file.ts'

const CURVE = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const
const DAY_MS = 24 * 60 * 60 * 1000
/** Browsers refuse longer ones. */
const LIFETIME_DAYS = 397
/** A certificate that is about to end is replaced at the next start. */
const RENEW_DAYS = 30

x509.cryptoProvider.set(webcrypto as typeof globalThis.crypto)

/**
 * Makes a local certificate authority and a certificate of it for the gateway (localhost, 127.0.0.1, ::1), unless they are
 * there and last for a while.
 */
export async function makeCertificates(paths: Paths): Promise<void> {
  if (await lasts(paths.gatewayCertificate)) return
  const notBefore = new Date(Date.now() - DAY_MS)
  const notAfter = new Date(Date.now() + LIFETIME_DAYS * DAY_MS)
  const caKeys = await webcrypto.subtle.generateKey(CURVE, true, ['sign', 'verify'])
  const caName = 'CN=Tollward local CA'
  const ca = await x509.X509CertificateGenerator.createSelfSigned({
    name: caName,
    notBefore,
    notAfter,
    keys: caKeys,
    signingAlgorithm: CURVE,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
    ],
  })
  const keys = await webcrypto.subtle.generateKey(CURVE, true, ['sign', 'verify'])
  const certificate = await x509.X509CertificateGenerator.create({
    subject: 'CN=Tollward gateway',
    issuer: caName,
    notBefore,
    notAfter,
    publicKey: keys.publicKey,
    signingKey: caKeys.privateKey,
    signingAlgorithm: CURVE,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
      new x509.SubjectAlternativeNameExtension([
        { type: 'dns', value: 'localhost' },
        { type: 'ip', value: '127.0.0.1' },
        { type: 'ip', value: '::1' },
      ]),
    ],
  })
  await writeSecret(paths.caKey, await privatePem(caKeys.privateKey))
  await writeSecret(paths.gatewayKey, await privatePem(keys.privateKey))
  await mkdir(dirname(paths.caCertificate), { recursive: true })
  await writeFile(paths.caCertificate, ca.toString('pem'))
  await writeFile(paths.gatewayCertificate, certificate.toString('pem'))
}

async function lasts(path: string): Promise<boolean> {
  try {
    const certificate = new x509.X509Certificate(await readFile(path, 'utf8'))
    return certificate.notAfter.getTime() > Date.now() + RENEW_DAYS * DAY_MS
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
    throw error
  }
}

async function privatePem(key: webcrypto.CryptoKey): Promise<string> {
  return x509.PemConverter.encode(await webcrypto.subtle.exportKey('pkcs8', key), x509.PemConverter.PrivateKeyTag)
}
