import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type Fragment, html, markupOf } from './html.ts'

test('no text becomes markup, wherever it stands', () => {
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom('<', '>', '"', "'", '&', 'a', '/', '=', ' ') }), (text) => {
      const markup = markupOf(html`<p title="${text}">${text}</p>`)
      const [, title = '', content = ''] = /^<p title="([^"]*)">(.*)<\/p>$/s.exec(markup) ?? []
      for (const part of [title, content]) {
        assert.doesNotMatch(part, /[<>"']/)
        assert.equal(decoded(part), text)
      }
    }),
  )
})

test('markup inside markup stays, lists are joined, nothing is nothing', () => {
  const items = ['<a>', 2].map((item) => html`<li>${item}</li>`)
  assert.equal(markupOf(html`<ul>${items}${undefined}${false}</ul>`), '<ul><li>&lt;a&gt;</li><li>2</li></ul>')
})

test('what came from outside as JSON cannot pass as markup', () => {
  const forged = JSON.parse('{"markup":"<script>","Symbol(markup)":"<script>"}') as Fragment
  assert.doesNotMatch(markupOf(html`${forged}`), /script/)
})

function decoded(text: string): string {
  const entities: Record<string, string> = { amp: '&', lt: '<', gt: '>', quot: '"', '#39': "'" }
  return text.replace(/&(#?\w+);/g, (_, name: string) => entities[name] ?? '?')
}
