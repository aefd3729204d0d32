import { hash } from 'node:crypto'
import type { Provider } from 'oidc-provider'
import { type Fragment, html, markupOf } from './html.ts'

/** Koa's context, with or without oidc-provider's part. */
export type Context = Parameters<Parameters<Provider['use']>[0]>[0]

/** Enough of a context to answer. */
export type Answering = Pick<Context, 'status' | 'type' | 'body' | 'set'>

export interface Page {
  readonly title: string
  readonly main: Fragment
  /** Something that was sent is wrong: said before the title, which is read out first. */
  readonly faulty?: boolean
  /** Where a form of this page may lead in the end besides ourselves: browsers hold form-action against redirects too. */
  readonly formTargets?: readonly string[]
}

const STYLE = `
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#4a5360;--paper:#fff;--ground:#f1f3f6;--line:#737d8a;--act:#0b57a4;--on-act:#fff;--bad:#a3180f;--bad-ground:#fdecea;--good-ground:#e6f4ea}
@media (prefers-color-scheme:dark){:root{--ink:#e8ebef;--soft:#b4bdc8;--paper:#1d2127;--ground:#121519;--line:#8d97a4;--act:#8ec2ff;--on-act:#0b1a2a;--bad:#ffb4ab;--bad-ground:#3b1512;--good-ground:#12301c}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:34rem;margin:0 auto;padding:2rem 1.25rem 4rem}
header{max-width:34rem;margin:0 auto;padding:1.5rem 1.25rem 0;color:var(--soft);font-weight:600}
.card{background:var(--paper);border-radius:.75rem;padding:1.75rem;box-shadow:0 1px 3px rgb(0 0 0/.15);margin-bottom:1.5rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .75rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .5rem}
p,ul,dl{margin:0 0 1rem}
li{margin:.35rem 0;overflow-wrap:anywhere}
dt{font-weight:600}
dd{margin:0 0 .5rem;overflow-wrap:anywhere}
label{display:block;font-weight:600;margin:0 0 .25rem}
.hint{color:var(--soft);margin:0 0 .25rem}
input[type=text],input[type=password]{width:100%;font:inherit;color:inherit;background:var(--paper);border:1px solid var(--line);border-radius:.4rem;padding:.6rem .7rem;margin:0 0 1rem}
input[aria-invalid=true]{border:2px solid var(--bad)}
.code{font-family:ui-monospace,monospace;font-size:1.5rem;letter-spacing:.1em}
button{font:inherit;font-weight:600;min-height:2.75rem;border-radius:.4rem;padding:.5rem 1.1rem;border:2px solid var(--act);background:var(--act);color:var(--on-act);cursor:pointer}
button.other{background:transparent;color:var(--act)}
button.ends{background:transparent;border-color:var(--bad);color:var(--bad)}
.actions{display:flex;flex-wrap:wrap;gap:.75rem;margin-top:.5rem}
a{color:var(--act)}
:focus-visible{outline:3px solid var(--act);outline-offset:2px}
.alert{border-left:.35rem solid var(--bad);background:var(--bad-ground);padding:.75rem 1rem;margin:0 0 1.25rem;border-radius:.25rem}
.alert p,.notice p{margin:0}
.notice{border-left:.35rem solid var(--act);background:var(--good-ground);padding:.75rem 1rem;margin:0 0 1.25rem;border-radius:.25rem}
.things{list-style:none;padding:0;margin:0}
.things>li{border-top:1px solid var(--line);padding:.9rem 0 .4rem;margin:0}
.things p{margin:0 0 .5rem}
`

const STYLE_HASH = hash('sha256', STYLE, 'base64')

/** The headers that every page has. `sources` are those of the page's own forms and scripts. */
function contentSecurityPolicy(sources: string): string {
  return `default-src 'none'; base-uri 'none'; frame-ancestors 'none'; ${sources}`
}

/** Answers with a page. Without script, from nowhere else, in no frame, kept nowhere. */
export function answerPage(ctx: Answering, { title, main, faulty, formTargets = [] }: Page, status = 200): void {
  ctx.status = status
  ctx.type = 'html'
  ctx.set('Cache-Control', 'no-store')
  ctx.set('X-Content-Type-Options', 'nosniff')
  // With "no-referrer" browsers would send "Origin: null" with our own forms.
  ctx.set('Referrer-Policy', 'same-origin')
  ctx.set(
    'Content-Security-Policy',
    contentSecurityPolicy(`style-src 'sha256-${STYLE_HASH}'; form-action ${["'self'", ...formTargets].join(' ')}`),
  )
  ctx.body = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${markupOf(html`${faulty === true && 'Error: '}${title} – Tollward`)}</title>
<style>${STYLE}</style>
</head>
<body>
<header>Tollward</header>
<main>${markupOf(html`${main}`)}</main>
</body>
</html>
`
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
