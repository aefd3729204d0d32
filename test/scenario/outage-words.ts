import { REASONS } from '@tollward/decision'
import {
  type Expectations,
  type Expected,
  HEALTHY,
  NATS_OUTAGES,
  REQUESTS,
  type RequestKind,
  SERVICE_OUTAGES,
} from './outage-table.ts'

/** What clients see while something fails, as the table that operators read: what stays as it is is left out. */
export function outageTable(): string {
  const told = Object.entries<Expectations>(SERVICE_OUTAGES)
  for (const [outage, { atFirst, later }] of Object.entries(NATS_OUTAGES)) {
    told.push([later ? `${outage}, at first` : outage, atFirst])
    if (later) told.push([`${outage}, after 5 s`, later])
  }
  const alike = Map.groupBy(told, ([, seen]) => wordsOf(seen))
  const rows = [...alike].map(([words, of]) => [of.map(([outage]) => outage).join('; '), words])
  const cells = [['while', 'clients see'], ...rows]
  const widths = [0, 1].map((column) => Math.max(...cells.map((row) => row[column]?.length ?? 0)))
  const line = (row: readonly string[]) => `| ${row.map((cell, at) => cell.padEnd(widths[at] ?? 0)).join(' | ')} |`
  const [head = [], ...body] = cells
  return [line(head), `| ${widths.map((width) => '-'.repeat(width)).join(' | ')} |`, ...body.map(line)].join('\n')
}

function wordsOf(seen: Expectations): string {
  const kinds = Object.keys(REQUESTS) as RequestKind[]
  const changed = kinds.filter((kind) => answerOf(seen[kind]) !== answerOf(HEALTHY[kind]))
  const groups = Map.groupBy(changed, (kind) => answerOf(seen[kind]))
  const told = [...groups].map(([answer, of]) => `${of.map((kind) => REQUESTS[kind]).join('; ')}: **${answer}**`)
  const rest = kinds.length - changed.length
  return [...told, rest === kinds.length ? 'nothing' : 'others as ever'].join('. ')
}

function answerOf({ answer, within: [fromMs, toMs], price, first }: Expected): string {
  const when = fromMs > 0 ? ` after ${toMs < 1000 ? '0.2' : fromMs < 600 ? '0.5' : '0.8'} s` : ''
  const until = first === undefined ? '' : 'what was leased, then '
  const what = answer === 'passes' ? answer : `${REASONS[answer].status} ${answer}`
  return `${until}${what}${price === false ? ' without the price' : ''}${when}`
}
