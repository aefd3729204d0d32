import { createCipheriv, createDecipheriv, createHmac } from 'node:crypto'

const CIPHER = 'aes-256-gcm'
const TAG_BYTES = 16

/** Bytes of the initialization vector (NIST SP 800-38D, section 8.2.2). */
export const SEAL_IV_BYTES = 12

/**
 * Encrypts a text under a key that follows from an id and a secret, so that what is kept is of no use to whoever has only one of
 * the two. `iv` are random bytes, never used before with this id.
 */
export function seal(text: string, id: string, secret: Buffer, iv: Buffer): string {
  const cipher = createCipheriv(CIPHER, keyOf(id, secret), iv)
  const bytes = Buffer.concat([iv, cipher.update(text, 'utf8'), cipher.final(), cipher.getAuthTag()])
  return bytes.toString('base64url')
}

/** Decrypts what `seal` made under this id and one of the secrets; undefined: it was not. */
export function unseal(sealed: string, id: string, secrets: readonly Buffer[]): string | undefined {
  const bytes = Buffer.from(sealed, 'base64url')
  if (bytes.length < SEAL_IV_BYTES + TAG_BYTES) return undefined
  for (const secret of secrets) {
    const decipher = createDecipheriv(CIPHER, keyOf(id, secret), bytes.subarray(0, SEAL_IV_BYTES))
    decipher.setAuthTag(bytes.subarray(-TAG_BYTES))
    const text = decipher.update(bytes.subarray(SEAL_IV_BYTES, -TAG_BYTES), undefined, 'utf8')
    try {
      return text + decipher.final('utf8')
    } catch {
      // Sealed under another secret; if under none of them, that is the answer.
    }
  }
  return undefined
}

function keyOf(id: string, secret: Buffer): Buffer {
  return createHmac('sha256', secret).update(id).digest()
}
