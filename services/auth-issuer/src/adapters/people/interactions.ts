import { errors, type InteractionResults, type Provider } from 'oidc-provider'
import { z } from 'zod'
import type { Person } from '../../domain/account.ts'
import { resourceOf } from '../../domain/audience.ts'
import type { RegisteredClient } from '../../domain/client.ts'
import { REGISTRATION } from '../client-metadata.ts'
import { OIDC_SCOPES } from '../provider.ts'
import { readForm } from './forms.ts'
import { answerPage, type Context, formTarget } from './layout.ts'
import { type Asked, consentPage, type Fault, signInPage, stalePage, TOKEN_FIELD } from './pages.ts'
import type { People } from './part.ts'
import { GENERATION, METHODS, personOf } from './session.ts'
import { trySignIn } from './sign-in-form.ts'

type Interaction = Awaited<ReturnType<Provider['interactionDetails']>>

/** What an interaction is about. */
interface Asking {
  readonly interaction: Interaction
  readonly client: RegisteredClient
  readonly clientName: string
  readonly formTargets: readonly string[]
  /** The token of this interaction's forms. */
  readonly token: string
}

/** What the consent prompt says is missing in the grant. */
const MissingSchema = z.looseObject({
  missingOIDCScope: z.array(z.string()).default([]),
  missingResourceScopes: z.record(z.string(), z.array(z.string())).default({}),
})

/** GET and POST of /interaction/<uid>: what oidc-provider needs a person for, sign-in or consent. */
export async function answerInteraction(ctx: Context, uid: string, provider: Provider, people: People): Promise<void> {
  const asking = await askingOf(ctx, uid, provider, people)
  if (!asking) return answerStale(ctx)
  if (ctx.method !== 'POST') return showPrompt(ctx, asking, provider, people)
  const form = await readForm(ctx)
  if (!people.formTokens.isOf(interactionPage(uid), form.get(TOKEN_FIELD) ?? '')) {
    people.metrics.formsRefused.inc({ reason: 'token' })
    return answerStale(ctx)
  }
  if (asking.interaction.prompt.name === 'login') return takeSignIn(ctx, form, asking, provider, people)
  return takeDecision(ctx, form, asking, provider, people)
}

async function askingOf(
  ctx: Context,
  uid: string,
  provider: Provider,
  { formTokens }: People,
): Promise<Asking | undefined> {
  let interaction: Interaction
  try {
    interaction = await provider.interactionDetails(ctx.req, ctx.res)
  } catch (error) {
    // Over, of another browser, or of somebody who has signed out or in as somebody else meanwhile.
    if (error instanceof errors.SessionNotFound) return undefined
    throw error
  }
  if (interaction.uid !== uid) return undefined
  const { client_id: clientId, redirect_uri: redirectUri } = interaction.params
  const client = await provider.Client.find(String(clientId))
  if (!client) return undefined
  const target = typeof redirectUri === 'string' ? formTarget(redirectUri) : undefined
  return {
    interaction,
    client: client[REGISTRATION] as RegisteredClient,
    clientName: client.clientName ?? client.clientId,
    formTargets: target === undefined ? [] : [target],
    token: formTokens.of(interactionPage(uid)),
  }
}

async function showPrompt(ctx: Context, asking: Asking, provider: Provider, people: People): Promise<void> {
  const { prompt, params } = asking.interaction
  if (prompt.name === 'login') {
    const hint = typeof params.login_hint === 'string' ? params.login_hint : ''
    return showSignIn(ctx, asking, hint)
  }
  const person = await personAsked(asking.interaction, provider, people)
  if (!person) return answerStale(ctx)
  const asked = whatIsAsked(asking)
  answerPage(ctx, consentPage(asked, person.name, asking.token, ctx.path, asking.formTargets))
}

function showSignIn(
  ctx: Context,
  { token, clientName, formTargets }: Asking,
  name: string,
  fault?: Fault,
  status = 200,
): void {
  answerPage(
    ctx,
    signInPage({ token, action: ctx.path, clientName, name, formTargets, ...(fault === undefined ? {} : { fault }) }),
    status,
  )
}

async function takeSignIn(
  ctx: Context,
  form: URLSearchParams,
  asking: Asking,
  provider: Provider,
  people: People,
): Promise<void> {
  if (form.has('cancel')) return goOn(ctx, provider, denial('the person did not sign in'))
  const tried = await trySignIn(ctx, form, people)
  if ('fault' in tried) return showSignIn(ctx, asking, tried.name, tried.fault, tried.status)
  const { subject, generation } = tried.person
  await goOn(ctx, provider, { login: { accountId: subject, amr: METHODS, [GENERATION]: generation } }, false)
}

async function takeDecision(
  ctx: Context,
  form: URLSearchParams,
  { interaction, client }: Asking,
  provider: Provider,
  people: People,
): Promise<void> {
  const person = await personAsked(interaction, provider, people)
  if (!person) return answerStale(ctx)
  if (form.get('decision') !== 'allow') {
    people.metrics.consents.inc({ decision: 'denied' })
    return goOn(ctx, provider, denial('the person denied the request'))
  }
  const existing = interaction.grantId === undefined ? undefined : await provider.Grant.find(interaction.grantId)
  const grant = existing ?? new provider.Grant({ accountId: person.subject, clientId: client.clientId })
  const { missingOIDCScope, missingResourceScopes } = missingOf(interaction)
  if (missingOIDCScope.length > 0) grant.addOIDCScope(missingOIDCScope)
  for (const [resource, scopes] of Object.entries(missingResourceScopes)) grant.addResourceScope(resource, scopes)
  // Kept, and told to everybody, by one: see grants.ts.
  const grantId = await grant.save()
  people.metrics.consents.inc({ decision: 'given' })
  await goOn(ctx, provider, { consent: { grantId } })
}

/** Goes on in the authorization request with what came of the interaction. */
async function goOn(
  ctx: Context,
  provider: Provider,
  result: InteractionResults,
  mergeWithLastSubmission = true,
): Promise<void> {
  const url = await provider.interactionResult(ctx.req, ctx.res, result, { mergeWithLastSubmission })
  ctx.status = 303
  ctx.set('Cache-Control', 'no-store')
  ctx.redirect(url)
}

/** RFC 6749, section 4.1.2.1. */
function denial(description: string): InteractionResults {
  return { error: 'access_denied', error_description: description }
}

/** The person who is asked for consent, if nothing has ended their session since. */
async function personAsked(
  { session }: Interaction,
  provider: Provider,
  { accounts }: People,
): Promise<Person | undefined> {
  return session && personOf(await provider.Session.findByUid(session.uid), accounts)
}

function whatIsAsked({ interaction, client, clientName, formTargets }: Asking): Asked {
  const scopes = typeof interaction.params.scope === 'string' ? interaction.params.scope.split(' ') : []
  const ofApis = scopes.filter((scope) => !OIDC_SCOPES.has(scope))
  return {
    clientName,
    selfRegistered: client.selfRegistered,
    returnsTo: formTargets[0],
    openidScopes: scopes.filter((scope) => OIDC_SCOPES.has(scope)),
    apis: resourcesOf(interaction).map((resource) => ({ audience: audienceOf(client, [resource]), scopes: ofApis })),
  }
}

function resourcesOf({ params: { resource } }: Interaction): string[] {
  return [resource ?? []].flat().map(String)
}

/** Names of the APIs that are meant. */
function audienceOf({ audience }: RegisteredClient, resources: readonly string[]): string[] {
  return audience.filter((name) => resources.includes(name) || resources.includes(resourceOf(name)))
}

function missingOf({ prompt }: Interaction): z.output<typeof MissingSchema> {
  return MissingSchema.parse(prompt.details)
}

function interactionPage(uid: string): string {
  return `interaction ${uid}`
}

function answerStale(ctx: Context): void {
  answerPage(ctx, stalePage(), 400)
}
