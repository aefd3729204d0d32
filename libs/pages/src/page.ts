import { hash } from 'node:crypto'
import { type Fragment, html, markupOf } from './html.ts'

/** What a page says. */
export interface PageContent {
  readonly title: string
  readonly main: Fragment
  /** Something that was sent is wrong: said before the title, which is read out first. */
  readonly faulty?: boolean
  /** JavaScript that the page may do without. It comes from us alone; inlineSource lets it run. */
  readonly script?: string
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
/* Readers of QR codes want dark on light, whatever the rest looks like. */
.qr{display:block;width:100%;max-width:18rem;background:#fff;border-radius:.4rem;margin:0 0 1rem}
.copied{user-select:all;font-family:ui-monospace,monospace}
.things{list-style:none;padding:0;margin:0}
.things>li{border-top:1px solid var(--line);padding:.9rem 0 .4rem;margin:0}
.things p{margin:0 0 .5rem}
`

/** The source expression (CSP Level 3, section 2.3.1) of the one style that pages have. */
export const STYLE_SOURCE: string = inlineSource(STYLE)

/** The source expression that lets this script run, and no other. */
export function inlineSource(script: string): string {
  return `'sha256-${hash('sha256', script, 'base64')}'`
}

/** The policy of every page: nothing from anywhere, in no frame, but for what `sources` add. */
export function contentSecurityPolicy(sources: string): string {
  return `default-src 'none'; base-uri 'none'; frame-ancestors 'none'; ${sources}`
}

/** A whole document. */
export function pageMarkup({ title, main, faulty, script }: PageContent): string {
  return `<!doctype html>
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
${script === undefined ? '' : `<script>${script}</script>\n`}</body>
</html>
`
}
