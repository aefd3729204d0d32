import type { Provider } from 'oidc-provider'
import type { Person } from '../../domain/account.ts'
import { SESSION_LIFETIME_SECONDS } from '../provider.ts'
import type { Accounts } from './accounts.ts'
import type { Context } from './layout.ts'

/** Under which generation of the account its person signed in: the password was right only then. */
export const GENERATION = 'generation'

/** How a person signed in (RFC 8176). */
export const METHODS = ['pwd']

type Session = InstanceType<Provider['Session']>

/** The person of a session, as long as nothing ended what they had when they signed in. */
export async function personOf(session: Session | undefined, accounts: Accounts): Promise<Person | undefined> {
  if (session?.accountId === undefined) return undefined
  const person = await accounts.find(session.accountId)
  return person?.enabled && person.generation === generationOf(session) ? person : undefined
}

export function generationOf(session: Session): unknown {
  return Reflect.get(session, GENERATION)
}

/** The session of a browser, and its person where somebody is signed in. */
export async function sessionOf(
  ctx: Context,
  provider: Provider,
  accounts: Accounts,
): Promise<{ session: Session; person: Person | undefined }> {
  const session = await provider.Session.get(ctx)
  return { session, person: await personOf(session, accounts) }
}

/** Signs a person in at this browser, in a session that nobody has seen before. */
export async function startSession(ctx: Context, provider: Provider, person: Person): Promise<void> {
  await (await provider.Session.get(ctx)).destroy()
  const session = new provider.Session()
  session.loginAccount({ accountId: person.subject, amr: METHODS })
  Reflect.set(session, GENERATION, person.generation)
  await session.save(SESSION_LIFETIME_SECONDS)
  const expires = new Date(session.exp * 1000)
  ctx.cookies.set(provider.cookieName('session'), session.jti, { httpOnly: true, sameSite: 'lax', expires })
}
