import type { Person } from '../../domain/account.ts'
import type { Context } from './layout.ts'
import type { Fault } from './pages.ts'
import type { People } from './part.ts'
import { sourceAddress } from './source-address.ts'

/** Shown at the next sign-in: this person has signed in with this browser before. */
const BROWSER_COOKIE = '_browser'

const BROWSER_COOKIE_LIFETIME_MS = 180 * 24 * 60 * 60 * 1000

/** What the browser shows of an earlier sign-in. */
export function shownBrowser(ctx: Context): string | undefined {
  return ctx.cookies.get(BROWSER_COOKIE)
}

/** Who signed in, or what to say. */
type Tried = { readonly person: Person } | { readonly name: string; readonly fault: Fault; readonly status: number }

/** Signs in with the fields of a form. */
export async function trySignIn(ctx: Context, form: URLSearchParams, people: People): Promise<Tried> {
  const name = form.get('name') ?? ''
  const password = form.get('password') ?? ''
  if (name === '' || password === '') {
    const [field, message] = name === '' ? ['name', 'Enter your name.'] : ['password', 'Enter your password.']
    return { name, fault: { field, message }, status: 422 }
  }
  const address = sourceAddress(ctx.req, people.trustedProxies)
  const result = await people.signIn({ name, password, address, browser: shownBrowser(ctx) })
  if ('person' in result) {
    const options = { httpOnly: true, sameSite: 'lax', maxAge: BROWSER_COOKIE_LIFETIME_MS } as const
    ctx.cookies.set(BROWSER_COOKIE, people.attempts.browserOf(name), options)
    return result
  }
  if (result.refused === 'throttled') {
    const seconds = Math.ceil(result.retryAfterMs / 1000)
    ctx.set('Retry-After', String(seconds))
    return { name, fault: { message: `That was too often. Try again in ${lastingText(seconds)}.` }, status: 429 }
  }
  const message =
    result.refused === 'disabled'
      ? 'This account is disabled. Ask an operator.'
      : 'Name or password is wrong. Check both and try again.'
  return { name, fault: { field: 'password', message }, status: 422 }
}

function lastingText(seconds: number): string {
  if (seconds < 60) return seconds === 1 ? 'a second' : `${seconds} seconds`
  const minutes = Math.ceil(seconds / 60)
  return minutes === 1 ? 'a minute' : `${minutes} minutes`
}
