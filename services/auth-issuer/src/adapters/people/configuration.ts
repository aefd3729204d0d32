import { AppError } from '@tollward/errors'
import { type Configuration, interactionPolicy, type KoaContextWithOIDC } from 'oidc-provider'
import { answerPage, formTarget } from './layout.ts'
import { deviceCodePage, deviceConfirmPage, endSessionPage, errorPage, messagePage } from './pages.ts'
import type { People } from './part.ts'
import { GENERATION, generationOf } from './session.ts'

/** Letters that are hard to mistake and make no words (RFC 8628, section 6.1); 20 to the 8th codes. */
const USER_CODE_CHARSET = 'base-20'
const USER_CODE_MASK = '****-****'

const START_AGAIN = 'Go back to the application and start again. If it happens again, tell those who run it.'

/** What people read instead of an error's code. */
const EXPLANATIONS: Readonly<Record<string, readonly [title: string, explanation: string]>> = {
  access_denied: ['Access was denied', 'The application was not let in.'],
  temporarily_unavailable: ['This does not work at the moment', 'Try again in a minute.'],
  server_error: ['Something went wrong', 'It is on our side. Try again later.'],
}

/** What oidc-provider has to know of people, and its pages for them. */
export function peopleConfiguration({ accounts }: Pick<People, 'accounts'>): Configuration {
  const policy = interactionPolicy.base()
  policy.get('login')?.checks.add(
    new interactionPolicy.Check(
      'ended',
      'the session was ended',
      // The session's person is gone, or everything that they had was ended since.
      ({ oidc }) => oidc.session?.accountId !== undefined && oidc.account === undefined,
    ),
  )
  return {
    claims: { openid: ['sub', 'preferred_username'] },
    interactions: { policy, url: (_ctx, { uid }) => `/interaction/${uid}` },
    findAccount: async (ctx, subject) => {
      const person = await accounts.find(subject)
      if (!person?.enabled || !isOfPresentGeneration(ctx, person.generation)) return undefined
      const claims = { sub: subject, preferred_username: person.name }
      return { accountId: subject, claims: async () => claims }
    },
    renderError,
    features: {
      deviceFlow: {
        enabled: true,
        charset: USER_CODE_CHARSET,
        mask: USER_CODE_MASK,
        userCodeInputSource,
        userCodeConfirmSource,
        successSource,
      },
      rpInitiatedLogout: { enabled: true, logoutSource, postLogoutSuccessSource },
    },
  }
}

/**
 * Whether a browser's session is of the account's present generation; a sign-in that has just come to its end gives its
 * generation to the session. What has no session (a token request) is held against its grant's generation elsewhere.
 */
function isOfPresentGeneration({ oidc }: KoaContextWithOIDC, generation: string): boolean {
  const { session, result } = oidc
  if (!session) return true
  if (result?.login) Reflect.set(session, GENERATION, result.login[GENERATION])
  return generationOf(session) === generation
}

type Out = Parameters<NonNullable<Configuration['renderError']>>[1]

function renderError(ctx: KoaContextWithOIDC, out: Out, error: Error): void {
  const unavailable = error instanceof AppError && error.meaning.http >= 503
  if (!ctx.accepts('html')) {
    ctx.body = out
    return
  }
  if (unavailable) ctx.set('Retry-After', '5')
  const code = unavailable ? 'temporarily_unavailable' : out.error
  const [title, explanation] = EXPLANATIONS[code] ?? ['This did not work', START_AGAIN]
  const description = code === out.error && code !== 'server_error' ? out.error_description : undefined
  answerPage(ctx, errorPage(title, explanation, code, description), unavailable ? 503 : ctx.status)
}

function userCodeInputSource(ctx: KoaContextWithOIDC, _form: string, _out?: unknown, error?: Error): void {
  const typed = error && 'userCode' in error && typeof error.userCode === 'string' ? error.userCode : ''
  if (error?.name === 'AbortedError') {
    answerPage(ctx, messagePage('The device was not connected', 'You can close this page.'))
    return
  }
  const messages: Readonly<Record<string, string>> = {
    NoCodeError: 'Enter the code that your device shows.',
    NotFoundError: 'There is no such code. Check it and enter it again.',
    ExpiredError: 'This code is over. Let your device show a new one.',
    AlreadyUsedError: 'This code was used already. Let your device show a new one.',
  }
  const message = error && (messages[error.name] ?? 'This did not work. Enter the code once more.')
  const fault = message === undefined ? undefined : { field: 'user_code', message }
  answerPage(ctx, deviceCodePage(deviceAction(ctx), xsrfOf(ctx), typed, fault), fault ? 422 : 200)
}

function userCodeConfirmSource(
  ctx: KoaContextWithOIDC,
  _form: string,
  client: { clientName?: string | undefined; clientId: string },
  _deviceInfo: unknown,
  userCode: string,
): void {
  answerPage(ctx, deviceConfirmPage(deviceAction(ctx), xsrfOf(ctx), userCode, client.clientName ?? client.clientId))
}

function successSource(ctx: KoaContextWithOIDC): void {
  const name = ctx.oidc.client?.clientName ?? ctx.oidc.client?.clientId
  answerPage(ctx, messagePage('Your device is connected', `Go on with ${name} there. You can close this page.`))
}

function logoutSource(ctx: KoaContextWithOIDC): void {
  const { client, session } = ctx.oidc
  const leadsTo = session?.state?.postLogoutRedirectUri
  const target = typeof leadsTo === 'string' ? formTarget(leadsTo) : undefined
  const page = endSessionPage(
    ctx.oidc.urlFor('end_session_confirm'),
    xsrfOf(ctx),
    client && (client.clientName ?? client.clientId),
    target === undefined ? [] : [target],
  )
  answerPage(ctx, page)
}

function postLogoutSuccessSource(ctx: KoaContextWithOIDC): void {
  const { client } = ctx.oidc
  const [title, text] = client
    ? ['You are still signed in', `${client.clientName ?? client.clientId} no longer knows you in this browser.`]
    : ['You are signed out', 'You can close this page.']
  answerPage(ctx, messagePage(title, text))
}

function deviceAction(ctx: KoaContextWithOIDC): string {
  return ctx.oidc.urlFor('code_verification')
}

/** oidc-provider's own token against forged forms, which it checks itself. */
function xsrfOf({ oidc }: KoaContextWithOIDC): string {
  const secret = oidc.session?.state?.secret
  return typeof secret === 'string' ? secret : ''
}
