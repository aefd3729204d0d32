/** Nothing that comes from outside can have this key, so nothing from outside is ever taken as markup. */
const MARKUP = Symbol('markup')

/** Markup, made by `html` alone. */
export interface Html {
  readonly [MARKUP]: string
}

/** What can stand in markup: text is escaped, lists are joined, undefined and false are nothing. */
export type Fragment = Html | string | number | undefined | false | readonly Fragment[]

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
}

/** Markup with values. Each value is escaped for an element's text and for a quoted attribute; those are the only places for one. */
export function html(parts: TemplateStringsArray, ...values: readonly Fragment[]): Html {
  return { [MARKUP]: parts.map((part, index) => part + textOf(values[index])).join('') }
}

/** Markup as text, to be sent. */
export function markupOf(page: Html): string {
  return page[MARKUP]
}

function textOf(value: Fragment): string {
  if (value === undefined || value === false) return ''
  if (typeof value === 'string') return value.replace(/[&<>"']/g, (character) => ENTITIES[character] ?? '')
  if (typeof value === 'number') return String(value)
  return isList(value) ? value.map(textOf).join('') : value[MARKUP]
}

/** Array.isArray does not narrow to a read-only list. */
function isList(value: Html | readonly Fragment[]): value is readonly Fragment[] {
  return Array.isArray(value)
}
