import type { AddressRange } from '@tollward/contracts'
import { AppError } from '@tollward/errors'
import { errors, type Provider } from 'oidc-provider'
import type { Logger } from 'pino'
import { USER_CODE_RATE } from '../../domain/attempts.ts'
import type { IssuerMetrics } from '../../metrics.ts'
import type { ProviderPart } from '../compose.ts'
import { BUS_PATIENCE_MS } from '../provider.ts'
import type { Stores } from '../stores.ts'
import { answerAccount } from './account.ts'
import type { Accounts } from './accounts.ts'
import type { Attempts } from './attempts.ts'
import { peopleConfiguration } from './configuration.ts'
import { type FormTokens, isFromOurPages, openFormTokens } from './forms.ts'
import { answerInteraction } from './interactions.ts'
import { answerPage, type Context, guardForeignPage } from './layout.ts'
import { messagePage, stalePage } from './pages.ts'
import { openSignIn } from './sign-in.ts'
import { sourceAddress } from './source-address.ts'

interface PeopleOptions {
  readonly issuer: string
  readonly stores: Pick<Stores, 'bus' | 'masterSecret' | 'sessions' | 'grants'>
  readonly accounts: Accounts
  readonly attempts: Attempts
  readonly trustedProxies: readonly AddressRange[]
  readonly metrics: IssuerMetrics
  readonly log: Logger
}

/** What the pages for people need. */
export interface People extends Omit<PeopleOptions, 'stores'> {
  readonly sessions: Stores['sessions']
  readonly grants: Stores['grants']
  readonly signIn: ReturnType<typeof openSignIn>
  readonly formTokens: FormTokens
}

const INTERACTION_PATH = /^\/interaction\/([\w-]{1,64})$/
const ACCOUNT_PATH = /^\/account(\/[a-z-]*)?$/

/** Pages of oidc-provider that people see: the authorization request, its form_post answer, devices, signing out. */
const PROVIDER_PATH = /^\/(auth(\/|$)|device(?!\/auth$)(\/|$)|session(\/|$))/
const UNAVAILABLE_RETRY_SECONDS = 5

const USER_CODE_PATH = '/device'

/** People: who they are, how they sign in and consent, and the pages for it. */
export function peoplePart({ stores, ...options }: PeopleOptions): ProviderPart {
  const { bus, masterSecret, sessions, grants } = stores
  const signIn = openSignIn({ bus, ...options })
  const people: People = { ...options, sessions, grants, signIn, formTokens: openFormTokens(masterSecret) }
  return {
    configuration: peopleConfiguration(people),
    install: (provider) => {
      leaveUnsavedSessions(provider)
      provider.use(async (ctx, next) => {
        const path = ctx.path
        const uid = INTERACTION_PATH.exec(path)?.[1]
        const ours = uid !== undefined || ACCOUNT_PATH.test(path)
        if (!ours && !PROVIDER_PATH.test(path)) return next()
        guardForeignPage(ctx)
        if (bus.disconnectedForMs > BUS_PATIENCE_MS) return answerUnavailable(ctx)
        if (ctx.method === 'POST' && !(await mayPost(ctx, provider, people))) return
        if (!ours) return answering(ctx, people, next)
        if (ctx.method !== 'GET' && ctx.method !== 'POST') return refuseMethod(ctx)
        await answering(ctx, people, () =>
          uid === undefined ? answerAccount(ctx, provider, people) : answerInteraction(ctx, uid, provider, people),
        )
      })
    },
  }
}

/**
 * Where somebody without a session opens a page that has none to begin with, such as an address of a device's sign-in that is
 * over, oidc-provider wants to go on with a session that was never kept, and fails. There is nothing to go on with.
 */
function leaveUnsavedSessions(provider: Provider): void {
  const sessions: { persist(this: { exp?: number }): Promise<unknown> } = provider.Session.prototype
  const { persist } = sessions
  sessions.persist = async function () {
    return this.exp === undefined ? undefined : await persist.call(this)
  }
}

/** Whether a form may be looked at: it comes from our own pages, and is not one of too many guesses. */
async function mayPost(
  ctx: Context,
  provider: Provider,
  { issuer, attempts, trustedProxies, metrics }: People,
): Promise<boolean> {
  if (!isFromOurPages(ctx, issuer)) {
    metrics.formsRefused.inc({ reason: 'other_site' })
    const explanation = 'This form was sent by a page of another site. Nothing was changed.'
    answerPage(ctx, messagePage('Not from here', explanation), 403)
    return false
  }
  if (ctx.path !== USER_CODE_PATH) return true
  const retryAfterMs = await attempts.fromSource('user-code', sourceAddress(ctx.req, trustedProxies), USER_CODE_RATE)
  if (retryAfterMs > 0) {
    ctx.set('Retry-After', String(Math.ceil(retryAfterMs / 1000)))
    answerPage(ctx, messagePage('Too many codes', 'Wait a minute, and then enter the code again.'), 429)
    return false
  }
  // oidc-provider keeps the form's token in the session, and fails where there is none.
  if (ctx.cookies.get(provider.cookieName('session')) !== undefined) return true
  answerPage(ctx, stalePage(), 400)
  return false
}

function refuseMethod(ctx: Context): void {
  ctx.set('Allow', 'GET, POST')
  answerPage(ctx, messagePage('This does not work', 'Open the page with a browser.'), 405)
}

/** Answers, and says what went wrong where something does, but nothing of the inside. */
async function answering(ctx: Context, { log, metrics }: People, answer: () => Promise<void>): Promise<void> {
  try {
    await answer()
    if (ctx.status === 503 && ctx.accepts('html')) answerUnavailable(ctx)
  } catch (error) {
    // What a session cannot take any more, because its person was signed out everywhere meanwhile.
    if (error instanceof errors.OIDCProviderError && error.status < 500) return answerPage(ctx, stalePage(), 400)
    const known = error instanceof AppError && error.code !== 'internal' ? error : undefined
    const status = known?.meaning.http ?? 500
    if (status >= 500) log[known ? 'warn' : 'error']({ err: error, path: ctx.path }, 'page failed')
    metrics.refused.inc({ error: refusalLabel(status) })
    if (status > 500) return answerUnavailable(ctx)
    const title = status >= 500 ? 'Something went wrong' : 'This did not work'
    answerPage(ctx, messagePage(title, known?.message ?? 'It is on our side. Try again later.'), status)
  }
}

function answerUnavailable(ctx: Context): void {
  ctx.set('Retry-After', String(UNAVAILABLE_RETRY_SECONDS))
  answerPage(ctx, messagePage('This does not work at the moment', 'Try again in a few seconds.'), 503)
}

function refusalLabel(status: number): string {
  if (status > 500) return 'temporarily_unavailable'
  return status === 500 ? 'server_error' : 'other'
}
