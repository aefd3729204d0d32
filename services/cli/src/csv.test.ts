import assert from 'node:assert/strict'
import { test } from 'node:test'
import { csvLine } from './csv.ts'

test('a cell can be read back as it was, and none is run by a spreadsheet', () => {
  const line = (...cells: Parameters<typeof csvLine>[0]) => csvLine(cells)
  assert.equal(line('a', 5, undefined, -3), 'a,5,,-3\r\n')
  assert.equal(line('two, three', 'say "four"', 'five\nsix'), '"two, three","say ""four""","five\nsix"\r\n')
  for (const start of ['=', '+', '-', '@', '\t', '\r']) assert.match(line(`${start}HYPERLINK(1)`), /^"?'[=+\-@\t\r]/)
})
