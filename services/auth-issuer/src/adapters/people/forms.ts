import { createHmac, timingSafeEqual } from 'node:crypto'
import { AppError } from '@tollward/errors'
import type { MasterSecret } from '../master-secret.ts'
import type { Context } from './layout.ts'

/** The longest form is two passwords of the greatest length, percent-encoded. */
const FORM_BYTES_MAX = 16_384

/** Tokens that make a form ours: only who was shown the page can send it. */
export interface FormTokens {
  /** For a form of this page: an interaction, a session, a browser. */
  of(page: string): string
  isOf(page: string, token: string): boolean
}

/** Opens the tokens, which every replica makes alike. */
export function openFormTokens(masterSecret: MasterSecret): FormTokens {
  const [key, ...olderKeys] = masterSecret.deriveAll('forms')
  const seal = (page: string, using: Buffer) => createHmac('sha256', using).update(page).digest()
  return {
    of: (page) => seal(page, key).toString('base64url'),
    isOf: (page, token) => {
      const given = Buffer.from(token, 'base64url')
      return [key, ...olderKeys].some((using) => {
        const expected = seal(page, using)
        return expected.length === given.length && timingSafeEqual(expected, given)
      })
    },
  }
}

/** Whether a browser says that a request comes from one of our own pages. What says nothing is no browser of today; there the token decides. */
export function isFromOurPages(ctx: Pick<Context, 'get'>, issuer: string): boolean {
  const site = ctx.get('sec-fetch-site')
  const origin = ctx.get('origin')
  return (site === '' || site === 'same-origin') && (origin === '' || origin === issuer)
}

/** Reads the fields of a form. AppError `invalid_argument`, `too_large`. */
export async function readForm(ctx: Pick<Context, 'req' | 'is'>): Promise<URLSearchParams> {
  if (!ctx.is('application/x-www-form-urlencoded'))
    throw new AppError('invalid_argument', 'Send the form of this page.')
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of ctx.req) {
    bytes += chunk.length
    if (bytes > FORM_BYTES_MAX) throw new AppError('too_large', `A form has at most ${FORM_BYTES_MAX} bytes.`)
    chunks.push(chunk)
  }
  return new URLSearchParams(Buffer.concat(chunks).toString())
}
