import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { describe, test } from 'node:test'
import { type CryptoKey, calculateJwkThumbprint, exportJWK, generateKeyPair, type JWK, SignJWT } from 'jose'
import { PROOF_AGE_MAX_MS, PROOF_AHEAD_MAX_MS } from '../edges.ts'
import { openProofs } from './proofs.ts'

const TOKEN = 'T'.repeat(43)
const URI = 'https://api.example:443/orders'

interface Key {
  readonly alg: string
  readonly privateKey: CryptoKey
  readonly jwk: JWK
  readonly privateJwk: JWK
  readonly thumbprint: string
}

async function keyOf(alg: 'ES256' | 'EdDSA' | 'RS256'): Promise<Key> {
  const { publicKey, privateKey } = await generateKeyPair(alg, { extractable: true })
  const jwk = await exportJWK(publicKey)
  return {
    alg,
    privateKey,
    jwk,
    privateJwk: await exportJWK(privateKey),
    thumbprint: await calculateJwkThumbprint(jwk),
  }
}

const nowSeconds = () => Math.floor(Date.now() / 1000)

/** A proof that is right but for what is overridden. */
async function proofOf(key: Key, { header = {}, claims = {} }: { header?: object; claims?: object } = {}) {
  const right = {
    jti: crypto.randomUUID(),
    htm: 'GET',
    htu: 'https://api.example/orders',
    iat: nowSeconds(),
    ath: hash('sha256', TOKEN, 'base64url'),
  }
  return new SignJWT({ ...right, ...claims })
    .setProtectedHeader({ alg: key.alg, typ: 'dpop+jwt', jwk: key.jwk, ...header })
    .sign(key.privateKey)
}

const expected = (key: Key) => ({
  thumbprint: key.thumbprint,
  tokenHash: hash('sha256', TOKEN, 'hex'),
  method: 'GET',
  uri: URI,
})

describe('DPoP proofs', () => {
  test('a proof of ES256 and of EdDSA is taken once', async () => {
    for (const alg of ['ES256', 'EdDSA'] as const) {
      const key = await keyOf(alg)
      const { check } = openProofs()
      const proof = await proofOf(key)
      assert.equal(await check(proof, expected(key)), undefined)
      const again = await check(proof, expected(key))
      assert.equal(again?.reason, 'proof-invalid')
      assert.match(again?.detail ?? '', /used before/)
      assert.equal(await check(await proofOf(key), expected(key)), undefined, 'a new one is taken')
    }
  })

  test('of many uses of one proof at once exactly one counts', async () => {
    const key = await keyOf('ES256')
    const { check } = openProofs()
    const proof = await proofOf(key)
    const faults = await Promise.all(Array.from({ length: 16 }, () => check(proof, expected(key))))
    assert.equal(faults.filter((fault) => !fault).length, 1)
  })

  test('one key cannot use up the jti of another', async () => {
    const [key, other] = [await keyOf('ES256'), await keyOf('ES256')]
    const { check } = openProofs()
    for (const each of [key, other]) {
      assert.equal(await check(await proofOf(each, { claims: { jti: 'same' } }), expected(each)), undefined)
    }
  })

  test('the URI is compared as a URI, without query and fragment', async () => {
    const key = await keyOf('ES256')
    const { check } = openProofs()
    const same = [
      'https://api.example:443/orders',
      'HTTPS://API.EXAMPLE/orders',
      'https://api.example/orders?a=b#c',
      'https://api.example./%6Frders',
    ]
    for (const htu of same)
      assert.equal(await check(await proofOf(key, { claims: { htu } }), expected(key)), undefined, htu)
  })

  test('a proof for another request, token or time proves nothing', async () => {
    const key = await keyOf('ES256')
    const { check } = openProofs()
    const wrong: [what: RegExp, claims: object][] = [
      [/htm/, { htm: 'POST' }],
      [/htm/, { htm: 'get' }],
      [/htm/, { htm: undefined }],
      ...[
        'https://api.example/other',
        'https://api.example/orders/',
        'https://api.example/Orders',
        'http://api.example/orders',
        'https://api.example:8443/orders',
        'https://user@api.example/orders',
        'https://api.example/x/../orders',
        'https://evil.example/orders',
        'https://api.example',
        '/orders',
        7,
        undefined,
      ].map((htu): [RegExp, object] => [/htu/, { htu }]),
      [/ath/, { ath: hash('sha256', 'another', 'base64url') }],
      [/ath/, { ath: hash('sha256', TOKEN, 'hex') }],
      [/ath/, { ath: undefined }],
      [/too old/, { iat: nowSeconds() - PROOF_AGE_MAX_MS / 1000 - 1 }],
      [/future/, { iat: nowSeconds() + PROOF_AHEAD_MAX_MS / 1000 + 2 }],
      [/iat|not a JWT/, { iat: 'now' }],
      [/jti/, { jti: '' }],
      [/jti|not a JWT/, { jti: 7 }],
    ]
    for (const [what, claims] of wrong) {
      const fault = await check(await proofOf(key, { claims }), expected(key))
      assert.equal(fault?.reason, 'proof-invalid', JSON.stringify(claims))
      assert.match(fault?.detail ?? '', what)
    }
  })

  test('a proof that is not signed by the bound key proves nothing', async () => {
    const [key, thief] = [await keyOf('ES256'), await keyOf('ES256')]
    const rsa = await keyOf('RS256')
    const { check } = openProofs()
    const unsigned = (header: object) =>
      `${Buffer.from(JSON.stringify(header)).toString('base64url')}.${Buffer.from('{}').toString('base64url')}.`
    const right = await proofOf(key)
    const [head = '', , signature = ''] = right.split('.')
    const claims = { jti: 'x', htm: 'GET', htu: URI, iat: nowSeconds(), ath: hash('sha256', TOKEN, 'base64url') }
    const symmetric = await new SignJWT(claims)
      .setProtectedHeader({ alg: 'HS256', typ: 'dpop+jwt', jwk: key.jwk })
      .sign(Buffer.from(JSON.stringify(key.jwk)))
    const proofs = {
      'signed by a thief': await proofOf(thief),
      'signed by a thief, with the stolen public key': await proofOf(thief, { header: { jwk: key.jwk } }),
      'of another type': await proofOf(key, { header: { typ: 'JWT' } }),
      'without type': await proofOf(key, { header: { typ: undefined } }),
      'without a key': await proofOf(key, { header: { jwk: undefined } }),
      'with the private key': await proofOf(key, { header: { jwk: key.privateJwk } }),
      'with alg none': unsigned({ alg: 'none', typ: 'dpop+jwt', jwk: key.jwk }),
      'signed symmetrically': symmetric,
      'with other claims': `${head}.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.${signature}`,
      'without signature': `${right.slice(0, right.lastIndexOf('.'))}.`,
      'no JWT': 'nonsense',
      empty: '',
    }
    for (const [what, proof] of Object.entries(proofs)) {
      assert.equal((await check(proof, expected(key)))?.reason, 'proof-invalid', what)
    }
    assert.equal(
      (await check(await proofOf(rsa), expected(rsa)))?.reason,
      'proof-invalid',
      'an algorithm that is not offered',
    )
    assert.equal(await check(right, expected(key)), undefined, 'none of them used the right one up')
    for (const wrong of [
      await proofOf(thief, { header: { jwk: key.jwk } }),
      await proofOf(key, { header: { jwk: key.privateJwk } }),
    ]) {
      assert.equal((await check(wrong, expected(key)))?.reason, 'proof-invalid', 'also once the key is known')
    }
  })
})
