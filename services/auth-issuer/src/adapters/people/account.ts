import { hash, randomBytes } from 'node:crypto'
import { AppError } from '@tollward/errors'
import type { Provider } from 'oidc-provider'
import type { Person } from '../../domain/account.ts'
import { passwordFault } from '../../domain/password.ts'
import { readForm } from './forms.ts'
import { answerPage, type Context } from './layout.ts'
import { accountPage, type Fault, messagePage, signInPage, TOKEN_FIELD } from './pages.ts'
import type { People } from './part.ts'
import { sessionOf, startSession } from './session.ts'
import { shownBrowser, trySignIn } from './sign-in-form.ts'
import { sourceAddress } from './source-address.ts'

const ACCOUNT_PATH = '/account'
const SIGN_IN_PATH = '/account/sign-in'

/** Binds the form to sign in to a browser that nobody is signed in at yet. */
const FORM_COOKIE = '_form'
const FORM_COOKIE_BYTES = 16

const REASON = 'ended by the person'

/** What is said after something was done; nothing else can be made to appear. */
const NOTICES: Readonly<Record<string, string>> = {
  session: 'The session was ended.',
  grant: 'The application lost its access.',
  password: 'The password was changed, and everything else was ended.',
  gone: 'That had ended already.',
}

/** Who is signed in at a browser. */
interface Visit {
  readonly person: Person
  readonly sessionUid: string
  readonly token: string
}

/** GET and POST of /account and what is below: people see what they have, and end it. */
export async function answerAccount(ctx: Context, provider: Provider, people: People): Promise<void> {
  if (ctx.path === SIGN_IN_PATH && ctx.method === 'POST') return takeSignIn(ctx, provider, people)
  const { session, person } = await sessionOf(ctx, provider, people.accounts)
  if (!person) return showSignIn(ctx, people, { status: ctx.method === 'POST' ? 403 : 200 })
  const visit = { person, sessionUid: session.uid, token: people.formTokens.of(accountForms(session.uid)) }
  if (ctx.method !== 'POST') {
    if (ctx.path !== ACCOUNT_PATH) return goTo(ctx, ACCOUNT_PATH)
    const notice = NOTICES[new URLSearchParams(ctx.querystring).get('done') ?? '']
    return showAccount(ctx, visit, provider, people, notice === undefined ? {} : { notice })
  }
  const form = await readForm(ctx)
  if (!people.formTokens.isOf(accountForms(session.uid), form.get(TOKEN_FIELD) ?? '')) {
    people.metrics.formsRefused.inc({ reason: 'token' })
    const fault = { message: 'That form was too old. Nothing was changed; please do it again.' }
    return showAccount(ctx, visit, provider, people, { fault, status: 403 })
  }
  switch (ctx.path) {
    case '/account/sessions':
      return endSession(ctx, visit, form.get('session') ?? '', people)
    case '/account/grants':
      return endGrant(ctx, visit, form.get('grant') ?? '', people)
    case '/account/password':
      return changePassword(ctx, visit, form, provider, people)
    case '/account/everything':
      return endEverything(ctx, visit, people)
    default:
      return goTo(ctx, ACCOUNT_PATH)
  }
}

function showSignIn(
  ctx: Context,
  { formTokens }: People,
  { name = '', fault, status }: { name?: string; fault?: Fault; status: number },
): void {
  const shown = ctx.cookies.get(FORM_COOKIE)
  const browser = shown ?? randomBytes(FORM_COOKIE_BYTES).toString('base64url')
  if (shown === undefined)
    ctx.cookies.set(FORM_COOKIE, browser, { httpOnly: true, sameSite: 'lax', path: ACCOUNT_PATH })
  const token = formTokens.of(signInForm(browser))
  answerPage(ctx, signInPage({ token, action: SIGN_IN_PATH, name, ...(fault === undefined ? {} : { fault }) }), status)
}

async function takeSignIn(ctx: Context, provider: Provider, people: People): Promise<void> {
  const form = await readForm(ctx)
  const browser = ctx.cookies.get(FORM_COOKIE)
  if (browser === undefined || !people.formTokens.isOf(signInForm(browser), form.get(TOKEN_FIELD) ?? '')) {
    people.metrics.formsRefused.inc({ reason: 'token' })
    const fault = { message: 'That form was too old. Please sign in once more.' }
    return showSignIn(ctx, people, { fault, status: 403 })
  }
  const tried = await trySignIn(ctx, form, people)
  if ('fault' in tried) return showSignIn(ctx, people, tried)
  await startSession(ctx, provider, tried.person)
  goTo(ctx, ACCOUNT_PATH)
}

async function showAccount(
  ctx: Context,
  { person, sessionUid, token }: Visit,
  provider: Provider,
  { sessions, grants }: People,
  { notice, fault, status = 200 }: { notice?: string; fault?: Fault; status?: number },
): Promise<void> {
  const [ownSessions, ownGrants] = await Promise.all([
    sessions.list(person.subject),
    grants.list({ subject: person.subject }),
  ])
  const named = ownGrants.map(async (grant) => {
    const client = await provider.Client.find(grant.clientId)
    return { ...grant, clientName: client?.clientName ?? grant.clientId }
  })
  const thisSession = hash('sha256', sessionUid, 'hex')
  const shown = { sessions: ownSessions, thisSession, grants: await Promise.all(named) }
  answerPage(ctx, accountPage({ name: person.name, token, ...shown, notice, fault }), status)
}

/** Ends a session, if it is the person's own. */
async function endSession(ctx: Context, { person }: Visit, sessionHash: string, { sessions }: People): Promise<void> {
  const own = await sessions.list(person.subject)
  const ended = own.some((session) => session.sessionHash === sessionHash) && (await sessions.end(sessionHash))
  goTo(ctx, `${ACCOUNT_PATH}?done=${ended ? 'session' : 'gone'}`)
}

/** Ends a grant with all its tokens, if it is the person's own. */
async function endGrant(ctx: Context, { person }: Visit, grantHash: string, { grants }: People): Promise<void> {
  const own = await grants.list({ subject: person.subject })
  const ended = own.some((grant) => grant.grantHash === grantHash) && (await grants.revokeByHash(grantHash, REASON))
  goTo(ctx, `${ACCOUNT_PATH}?done=${ended ? 'grant' : 'gone'}`)
}

async function changePassword(
  ctx: Context,
  visit: Visit,
  form: URLSearchParams,
  provider: Provider,
  people: People,
): Promise<void> {
  const { person } = visit
  const [current, chosen, again] = ['current', 'chosen', 'again'].map((field) => form.get(field) ?? '')
  const refuse = (field: string, message: string, status = 422) =>
    showAccount(ctx, visit, provider, people, { fault: { field, message }, status })
  const fault = passwordFault(chosen ?? '')
  if (fault !== undefined) return refuse('chosen', fault)
  if (chosen !== again) return refuse('again', 'The new password is not the same both times.')
  const address = sourceAddress(ctx.req, people.trustedProxies)
  const attempt = { name: person.name, password: current ?? '', address, browser: shownBrowser(ctx) }
  const checked = await people.signIn(attempt)
  if ('refused' in checked) {
    return checked.refused === 'throttled'
      ? refuse('current', 'That was too often. Try again in a few minutes.', 429)
      : refuse('current', 'The password until now is wrong.')
  }
  const changed = await people.accounts.setPassword(person.name, chosen ?? '', 'password changed by the person')
  // Everything has ended, this session too.
  await startSession(ctx, provider, changed.person)
  goTo(ctx, `${ACCOUNT_PATH}?done=password`)
}

async function endEverything(ctx: Context, { person }: Visit, { accounts }: People): Promise<void> {
  if (!(await accounts.endEverything(person.subject, REASON))) throw new AppError('not_found', 'There is nobody.')
  answerPage(ctx, messagePage('Everything has ended', 'You are signed out everywhere, and no application has access.'))
}

function accountForms(sessionUid: string): string {
  return `account ${sessionUid}`
}

function signInForm(browser: string): string {
  return `sign-in ${browser}`
}

function goTo(ctx: Context, path: string): void {
  ctx.status = 303
  ctx.set('Cache-Control', 'no-store')
  ctx.redirect(path)
}
