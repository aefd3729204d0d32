import assert from 'node:assert/strict'
import { X509Certificate } from 'node:crypto'
import { readFileSync, rmSync, statSync } from 'node:fs'
import { test } from 'node:test'
import { temporaryDirectory } from '@tollward/testkit'
import { type Paths, pathsIn } from './paths.ts'
import { makeCertificates } from './tls.ts'

const read = (path: string) => new X509Certificate(readFileSync(path))

function certificatesOf(paths: Paths) {
  return {
    ca: read(paths.caCertificate),
    gateway: read(paths.gatewayCertificate),
    issuer: read(paths.issuerCertificate),
  }
}

test('the gateway and the issuer have certificates of one local authority, for this machine, with keys that others cannot read', async () => {
  await using directory = await temporaryDirectory()
  const paths = pathsIn(directory.path)
  await makeCertificates(paths)
  const { ca, gateway, issuer } = certificatesOf(paths)
  for (const certificate of [gateway, issuer]) {
    assert.ok(certificate.verify(ca.publicKey) && certificate.checkIssued(ca))
    assert.ok(certificate.checkHost('localhost') && certificate.checkIP('127.0.0.1') && certificate.checkIP('::1'))
  }
  for (const key of [paths.caKey, paths.gatewayKey, paths.issuerKey]) assert.equal(statSync(key).mode & 0o777, 0o600)
})

test('certificates stay from start to start; one that is missing is made by the same authority, and a new one makes all anew', async () => {
  await using directory = await temporaryDirectory()
  const paths = pathsIn(directory.path)
  await makeCertificates(paths)
  const first = certificatesOf(paths)
  rmSync(paths.issuerCertificate)
  await makeCertificates(paths)
  const second = certificatesOf(paths)
  assert.deepEqual([second.ca.raw, second.gateway.raw], [first.ca.raw, first.gateway.raw])
  assert.ok(second.issuer.verify(first.ca.publicKey))
  rmSync(paths.caCertificate)
  await makeCertificates(paths)
  const third = certificatesOf(paths)
  assert.ok(third.gateway.verify(third.ca.publicKey) && third.issuer.verify(third.ca.publicKey))
})
