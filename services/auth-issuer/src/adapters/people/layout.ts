import { contentSecurityPolicy, type PageContent, pageMarkup, STYLE_SOURCE } from '@tollward/pages'
import type { Provider } from 'oidc-provider'

/** Koa's context, with or without oidc-provider's part. */
export type Context = Parameters<Parameters<Provider['use']>[0]>[0]

/** Enough of a context to answer. */
export type Answering = Pick<Context, 'status' | 'type' | 'body' | 'set'>

export interface Page extends PageContent {
  /** Where a form of this page may lead in the end besides ourselves: browsers hold form-action against redirects too. */
  readonly formTargets?: readonly string[]
}

/** Answers with a page. Without script, from nowhere else, in no frame, kept nowhere. */
export function answerPage(ctx: Answering, { formTargets = [], ...page }: Page, status = 200): void {
  ctx.status = status
  ctx.type = 'html'
  ctx.set('Cache-Control', 'no-store')
  ctx.set('X-Content-Type-Options', 'nosniff')
  // With "no-referrer" browsers would send "Origin: null" with our own forms.
  ctx.set('Referrer-Policy', 'same-origin')
  ctx.set(
    'Content-Security-Policy',
    contentSecurityPolicy(`style-src ${STYLE_SOURCE}; form-action ${["'self'", ...formTargets].join(' ')}`),
  )
  ctx.body = pageMarkup(page)
}

/**
 * Headers for the pages that oidc-provider makes by itself, which post themselves to where they lead: its one script is
 * allowed by the hash that oidc-provider adds, everything else is not.
 */
export function guardForeignPage(ctx: Answering): void {
  ctx.set('Cache-Control', 'no-store')
  ctx.set('X-Content-Type-Options', 'nosniff')
  ctx.set('Referrer-Policy', 'strict-origin')
  ctx.set('Content-Security-Policy', contentSecurityPolicy("script-src 'report-sample'"))
}

/** The source expression (CSP Level 3, section 2.3.1) that lets a form lead to this address. */
export function formTarget(uri: string): string | undefined {
  if (!URL.canParse(uri)) return undefined
  const { protocol, origin, hostname } = new URL(uri)
  // There is no source expression for an IPv6 address, and none for a host of an app's own scheme.
  return protocol.startsWith('http') && !hostname.startsWith('[') ? origin : protocol
}
