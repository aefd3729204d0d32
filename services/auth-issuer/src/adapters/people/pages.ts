import { type Fragment, type Html, html } from '@tollward/pages'
import { PASSWORD_LENGTH_MIN } from '../../domain/password.ts'
import type { GrantView } from '../grants.ts'
import type { SessionView } from '../sessions.ts'
import type { Page } from './layout.ts'

/** The hidden field that makes a form ours. */
export const TOKEN_FIELD = 'form'

const NAME_FIELD = 'name'
const PASSWORD_FIELD = 'password'

/** What was wrong with a form that was sent, as a sentence. */
export interface Fault {
  readonly message: string
  /** The field that it is about; none: the whole. */
  readonly field?: string
}

/** The form to sign in, alone or on the way to a client. */
export function signInPage({
  token,
  action,
  clientName,
  name = '',
  fault,
  formTargets = [],
}: {
  token: string
  action: string
  /** Whom it is for; undefined: the person's own account page. */
  clientName?: string | undefined
  name?: string
  fault?: Fault
  formTargets?: readonly string[]
}): Page {
  const main = html`<div class="card">
<h1>Sign in</h1>
${clientName !== undefined && html`<p>to go on to <strong>${clientName}</strong></p>`}
${faultSummary(fault)}
<form method="post" action="${action}">
${tokenField(token)}
${field({ id: NAME_FIELD, label: 'Name', autocomplete: 'username', value: name, fault, focus: fault === undefined && name === '' })}
${field({ id: PASSWORD_FIELD, label: 'Password', autocomplete: 'current-password', secret: true, fault, focus: fault === undefined && name !== '' })}
<div class="actions">
<button type="submit">Sign in</button>
${clientName !== undefined && html`<button type="submit" name="cancel" value="yes" class="other" formnovalidate>Cancel</button>`}
</div>
</form>
</div>`
  return { title: 'Sign in', main, faulty: fault !== undefined, formTargets }
}

/** What a client asks for. */
export interface Asked {
  readonly clientName: string
  /** Nobody vouches for this client: it registered itself. */
  readonly selfRegistered: boolean
  /** Where the person is sent afterwards; undefined: a device waits elsewhere. */
  readonly returnsTo: string | undefined
  readonly openidScopes: readonly string[]
  /** Scopes for each API. */
  readonly apis: readonly { readonly audience: readonly string[]; readonly scopes: readonly string[] }[]
}

const OPENID_SENTENCES: Readonly<Record<string, string>> = {
  openid: 'recognise you when you come again, and see the name that you sign in with',
  offline_access: 'keep this access while you are away, until you or an operator end it',
}

/** Asks whether a client may act for the person. */
export function consentPage(
  asked: Asked,
  personName: string,
  token: string,
  action: string,
  formTargets: readonly string[],
): Page {
  const { clientName, selfRegistered, returnsTo, openidScopes, apis } = asked
  const title = `Let ${clientName} act for you?`
  const main = html`<div class="card">
<h1>${title}</h1>
<p>You are signed in as <strong>${personName}</strong>.</p>
${selfRegistered && html`<p class="alert">This application registered itself. Nobody here has looked at who runs it.</p>`}
<h2>It asks to</h2>
<ul>
${openidScopes.map((scope) => html`<li>${OPENID_SENTENCES[scope] ?? `know about you: ${scope}`}</li>`)}
${apis.map((api) => apiSentence(api))}
</ul>
${returnsTo !== undefined && html`<p>Either way you go on to <strong>${returnsTo}</strong>.</p>`}
<form method="post" action="${action}">
${tokenField(token)}
<div class="actions">
<button type="submit" name="decision" value="allow">Allow</button>
<button type="submit" name="decision" value="deny" class="other">Deny</button>
</div>
</form>
</div>`
  return { title, main, formTargets }
}

function apiSentence({ audience, scopes }: Asked['apis'][number]): Html {
  const where = audience.map((name, index) => html`${index > 0 && ', '}<strong>${name}</strong>`)
  if (scopes.length === 0) return html`<li>call ${where} in your name</li>`
  return html`<li>call ${where} in your name, with: ${scopes.map((scope, index) => html`${index > 0 && ', '}<strong>${scope}</strong>`)}</li>`
}

/** Asks for the code that a device shows (RFC 8628, section 3.3). */
export function deviceCodePage(action: string, xsrf: string, code: string, fault: Fault | undefined): Page {
  const title = 'Connect a device'
  const main = html`<div class="card">
<h1>${title}</h1>
${faultSummary(fault)}
<form method="post" action="${action}">
<input type="hidden" name="xsrf" value="${xsrf}">
${field({ id: 'user_code', label: 'Code', hint: 'Your device shows it.', autocomplete: 'off', value: code, fault, focus: fault === undefined })}
<div class="actions"><button type="submit">Go on</button></div>
</form>
</div>`
  return { title, main, faulty: fault !== undefined }
}

/** Shows the code again, so that nobody connects somebody else's device (RFC 8628, section 3.3.1). */
export function deviceConfirmPage(action: string, xsrf: string, code: string, clientName: string): Page {
  const title = `Connect ${clientName}?`
  const main = html`<div class="card">
<h1>${title}</h1>
<p>Does your device show exactly this code?</p>
<p class="code">${code}</p>
<p>If somebody sent you the code or the link, say no: it would be their device that acts for you.</p>
<form method="post" action="${action}">
<input type="hidden" name="xsrf" value="${xsrf}">
<input type="hidden" name="user_code" value="${code}">
<div class="actions">
<button type="submit" name="confirm" value="yes">Yes, go on</button>
<button type="submit" name="abort" value="yes" class="other">No</button>
</div>
</form>
</div>`
  return { title, main }
}

/** Asks whether to sign out (OpenID Connect RP-Initiated Logout 1.0, section 2). */
export function endSessionPage(
  action: string,
  xsrf: string,
  clientName: string | undefined,
  formTargets: readonly string[],
): Page {
  const title = 'Sign out?'
  const main = html`<div class="card">
<h1>${title}</h1>
<p>${clientName === undefined ? 'You will be signed out in this browser.' : html`<strong>${clientName}</strong> asks to sign you out in this browser.`} Applications that may act for you go on; you can end their access on <a href="/account">your account page</a>.</p>
<form method="post" action="${action}">
<input type="hidden" name="xsrf" value="${xsrf}">
<div class="actions">
<button type="submit" name="logout" value="yes">Sign out</button>
<button type="submit" class="other">Stay signed in</button>
</div>
</form>
</div>`
  return { title, main, formTargets }
}

/** A page that only says something. */
export function messagePage(title: string, ...paragraphs: readonly Fragment[]): Page {
  return {
    title,
    main: html`<div class="card"><h1>${title}</h1>${paragraphs.map((text) => html`<p>${text}</p>`)}</div>`,
  }
}

/** For a form or a link whose time has passed. */
export function stalePage(): Page {
  return messagePage(
    'This page is over',
    'It was open for too long, was sent twice, or belongs to somebody who has signed out.',
    'Nothing was changed. Go back to the application and start again.',
  )
}

/** An OAuth error for a person (RFC 6749, section 4.1.2.1), where there is no client to send it to. */
export function errorPage(title: string, explanation: string, error: string, description: string | undefined): Page {
  const main = html`<div class="card">
<h1>${title}</h1>
<p>${explanation}</p>
<dl>
<dt>Error</dt><dd>${error}</dd>
${description !== undefined && html`<dt>Description</dt><dd>${description}</dd>`}
</dl>
</div>`
  return { title, main }
}

/** What a person has, and how to end it. */
export function accountPage({
  name,
  token,
  sessions,
  thisSession,
  grants,
  fault,
  notice,
}: {
  name: string
  token: string
  sessions: readonly SessionView[]
  /** SHA-256 of this browser's session. */
  thisSession: string
  grants: readonly (GrantView & { readonly clientName: string })[]
  fault?: Fault | undefined
  notice?: string | undefined
}): Page {
  const main = html`${faultSummary(fault)}
${notice !== undefined && html`<div class="notice" role="status"><p>${notice}</p></div>`}
<div class="card">
<h1>Your account</h1>
<p>You are signed in as <strong>${name}</strong>.</p>
<form method="get" action="/session/end"><button type="submit" class="other">Sign out</button></form>
</div>
<section class="card" aria-labelledby="sessions">
<h2 id="sessions">Where you are signed in</h2>
<ul class="things">${sessions.map((session) => sessionItem(session, session.sessionHash === thisSession, token))}</ul>
</section>
<section class="card" aria-labelledby="grants">
<h2 id="grants">Applications that may act for you</h2>
${grants.length === 0 ? html`<p>None.</p>` : html`<ul class="things">${grants.map((grant) => grantItem(grant, token))}</ul>`}
</section>
<section class="card" aria-labelledby="change">
<h2 id="change">Change the password</h2>
<p>You will be signed out everywhere else, and every application loses its access.</p>
<form method="post" action="/account/password">
${tokenField(token)}
<input type="text" name="username" value="${name}" autocomplete="username" hidden>
${field({ id: 'current', label: 'Password until now', autocomplete: 'current-password', secret: true, fault })}
${field({ id: 'chosen', label: 'New password', hint: `At least ${PASSWORD_LENGTH_MIN} characters.`, autocomplete: 'new-password', secret: true, fault })}
${field({ id: 'again', label: 'New password again', autocomplete: 'new-password', secret: true, fault })}
<div class="actions"><button type="submit">Change the password</button></div>
</form>
</section>
<section class="card" aria-labelledby="everything">
<h2 id="everything">End everything</h2>
<p>Signs you out everywhere, here too, and ends the access of every application.</p>
<form method="post" action="/account/everything">${tokenField(token)}<button type="submit" class="ends">End everything</button></form>
</section>`
  return { title: 'Your account', main, faulty: fault !== undefined }
}

function sessionItem(session: SessionView, isThis: boolean, token: string): Html {
  const since = timeOf(session.signedInAtMs)
  return html`<li>
<p>${isThis ? html`<strong>This browser</strong>, signed in` : 'Signed in'} ${since}, until ${timeOf(session.expiresAtMs)}</p>
${
  !isThis &&
  html`<form method="post" action="/account/sessions">${tokenField(token)}
<button type="submit" class="ends" name="session" value="${session.sessionHash}" aria-label="End the session of ${textOf(session.signedInAtMs)}">End</button></form>`
}
</li>`
}

function grantItem(grant: GrantView & { readonly clientName: string }, token: string): Html {
  const what = [...grant.scopes, ...grant.audience].join(', ')
  return html`<li>
<p><strong>${grant.clientName}</strong>, since ${timeOf(grant.grantedAtMs)}${what !== '' && `: ${what}`}</p>
<form method="post" action="/account/grants">${tokenField(token)}
<button type="submit" class="ends" name="grant" value="${grant.grantHash}" aria-label="End access of ${grant.clientName}">End access</button></form>
</li>`
}

function timeOf(atMs: number): Html {
  return html`<time datetime="${new Date(atMs).toISOString()}">${textOf(atMs)}</time>`
}

function textOf(atMs: number): string {
  return `${new Date(atMs).toISOString().slice(0, 16).replace('T', ' ')} UTC`
}

function tokenField(token: string): Html {
  return html`<input type="hidden" name="${TOKEN_FIELD}" value="${token}">`
}

/** Takes the focus, so that a screen reader begins with it. */
function faultSummary(fault: Fault | undefined): Fragment {
  if (!fault) return undefined
  const { message, field: about } = fault
  return html`<div class="alert" role="alert" tabindex="-1" autofocus><p id="fault">${about === undefined ? message : html`<a href="#${about}">${message}</a>`}</p></div>`
}

function field({
  id,
  label,
  hint,
  autocomplete,
  value = '',
  secret = false,
  focus = false,
  fault,
}: {
  id: string
  label: string
  hint?: string
  autocomplete: string
  value?: string
  secret?: boolean
  focus?: boolean
  fault?: Fault | undefined
}): Html {
  const wrong = fault?.field === id
  const describedBy = [hint !== undefined && `${id}-hint`, wrong && 'fault'].filter((part) => part !== false).join(' ')
  return html`<label for="${id}">${label}</label>
${hint !== undefined && html`<p class="hint" id="${id}-hint">${hint}</p>`}
<input id="${id}" name="${id}" type="${secret ? 'password' : 'text'}" value="${value}" autocomplete="${autocomplete}" autocapitalize="none" spellcheck="false" required${describedBy !== '' && html` aria-describedby="${describedBy}"`}${wrong && html` aria-invalid="true"`}${focus && html` autofocus`}>`
}
