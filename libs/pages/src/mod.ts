export { type Fragment, type Html, html, markupOf } from './html.ts'
export { contentSecurityPolicy, inlineSource, type PageContent, pageMarkup, STYLE_SOURCE } from './page.ts'
