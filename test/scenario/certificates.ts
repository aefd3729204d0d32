import 'reflect-metadata'
import { webcrypto } from 'node:crypto'
import * as x509 from '@peculiar/x509'

const CURVE = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const
const HOUR_MS = 3_600_000

x509.cryptoProvider.set(webcrypto as typeof globalThis.crypto)

/** A certificate and its private key. */
export interface Identification {
  /** PEM. */
  readonly cert: string
  /** PEM, PKCS #8. */
  readonly key: string
  /** Base64 of its DER, as a JWK's "x5c" has it. */
  readonly der: string
  /** The key's public part. */
  readonly publicJwk: webcrypto.JsonWebKey
}

/** An authority for one test, and what it vouches for. */
export interface Authority {
  readonly cert: string
  /**
   * For a client, or for a server on 127.0.0.1. The subject's parts are in the order of its DER, which RFC 4514 turns around.
   * `names`: a workload's as a URI (SPIFFE id), a host's.
   */
  issue(subject: string, usage: 'client' | 'server', names?: { url?: string; dns?: string }): Promise<Identification>
}

/** Makes one. */
export async function makeAuthority(name = 'CN=Test CA'): Promise<Authority> {
  const keys = await webcrypto.subtle.generateKey(CURVE, true, ['sign', 'verify'])
  const ca = await x509.X509CertificateGenerator.createSelfSigned({
    ...validity(),
    name,
    keys,
    signingAlgorithm: CURVE,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign, true),
    ],
  })
  return {
    cert: ca.toString('pem'),
    issue: async (subject, usage, names = {}) => {
      const own = await webcrypto.subtle.generateKey(CURVE, true, ['sign', 'verify'])
      const certificate = await x509.X509CertificateGenerator.create({
        ...validity(),
        subject,
        issuer: name,
        publicKey: own.publicKey,
        signingKey: keys.privateKey,
        signingAlgorithm: CURVE,
        extensions: [
          new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
          new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage[`${usage}Auth`]]),
          ...alternatives({ ...(usage === 'server' && { ip: '127.0.0.1' }), ...names }),
        ],
      })
      return await identification(certificate, own)
    },
  }
}

function alternatives(names: Partial<Record<'ip' | 'url' | 'dns', string>>): x509.Extension[] {
  const list = Object.entries(names).map(([type, value]) => ({ type: type as 'ip' | 'url' | 'dns', value }))
  return list.length === 0 ? [] : [new x509.SubjectAlternativeNameExtension(list)]
}

/** A certificate that nobody vouches for (RFC 8705, section 2.2). */
export async function selfSigned(name: string): Promise<Identification> {
  const keys = await webcrypto.subtle.generateKey(CURVE, true, ['sign', 'verify'])
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    ...validity(),
    name,
    keys,
    signingAlgorithm: CURVE,
  })
  return await identification(certificate, keys)
}

function validity(): { notBefore: Date; notAfter: Date } {
  return { notBefore: new Date(Date.now() - HOUR_MS), notAfter: new Date(Date.now() + HOUR_MS) }
}

async function identification(
  certificate: x509.X509Certificate,
  keys: webcrypto.CryptoKeyPair,
): Promise<Identification> {
  const pkcs8 = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey)
  return {
    cert: certificate.toString('pem'),
    key: x509.PemConverter.encode(pkcs8, x509.PemConverter.PrivateKeyTag),
    der: Buffer.from(certificate.rawData).toString('base64'),
    publicJwk: await webcrypto.subtle.exportKey('jwk', keys.publicKey),
  }
}
