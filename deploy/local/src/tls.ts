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

interface Authority {
  readonly certificate: x509.X509Certificate
  readonly privateKey: webcrypto.CryptoKey
}

/**
 * Makes a local certificate authority, and certificates of it (localhost, 127.0.0.1, ::1) for the gateway and for the issuer's
 * clients with certificates, unless they are there and last for a while. A new authority makes new certificates.
 */
export async function makeCertificates(paths: Paths): Promise<void> {
  const authority = await openAuthority(paths)
  const servers = [
    { name: 'gateway', certificate: paths.gatewayCertificate, key: paths.gatewayKey },
    { name: 'auth-issuer', certificate: paths.issuerCertificate, key: paths.issuerKey },
  ]
  for (const { name, certificate, key } of servers) {
    const before = await lasting(certificate)
    if (await before?.verify({ publicKey: authority.certificate.publicKey, signatureOnly: true })) continue
    const made = await serverCertificate(name, authority)
    await writeSecret(key, await privatePem(made.privateKey))
    await writeFile(certificate, made.certificate.toString('pem'))
  }
}

async function openAuthority(paths: Paths): Promise<Authority> {
  const certificate = await lasting(paths.caCertificate)
  if (certificate) {
    const [pkcs8] = x509.PemConverter.decode(await readFile(paths.caKey, 'utf8'))
    if (!pkcs8) throw new Error(`${paths.caKey} holds no key; remove ${paths.caCertificate} for a new authority`)
    const privateKey = await webcrypto.subtle.importKey('pkcs8', pkcs8, CURVE, true, ['sign'])
    return { certificate, privateKey }
  }
  const keys = await webcrypto.subtle.generateKey(CURVE, true, ['sign', 'verify'])
  const made = await x509.X509CertificateGenerator.createSelfSigned({
    name: 'CN=Tollward local CA',
    ...validity(),
    keys,
    signingAlgorithm: CURVE,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
    ],
  })
  await writeSecret(paths.caKey, await privatePem(keys.privateKey))
  await mkdir(dirname(paths.caCertificate), { recursive: true })
  await writeFile(paths.caCertificate, made.toString('pem'))
  return { certificate: made, privateKey: keys.privateKey }
}

async function serverCertificate(name: string, authority: Authority): Promise<Authority> {
  const keys = await webcrypto.subtle.generateKey(CURVE, true, ['sign', 'verify'])
  const certificate = await x509.X509CertificateGenerator.create({
    subject: `CN=Tollward ${name}`,
    issuer: authority.certificate.subject,
    ...validity(),
    publicKey: keys.publicKey,
    signingKey: authority.privateKey,
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
  return { certificate, privateKey: keys.privateKey }
}

function validity() {
  return { notBefore: new Date(Date.now() - DAY_MS), notAfter: new Date(Date.now() + LIFETIME_DAYS * DAY_MS) }
}

async function lasting(path: string): Promise<x509.X509Certificate | undefined> {
  try {
    const certificate = new x509.X509Certificate(await readFile(path, 'utf8'))
    return certificate.notAfter.getTime() > Date.now() + RENEW_DAYS * DAY_MS ? certificate : undefined
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

async function privatePem(key: webcrypto.CryptoKey): Promise<string> {
  return x509.PemConverter.encode(await webcrypto.subtle.exportKey('pkcs8', key), x509.PemConverter.PrivateKeyTag)
}
