import { durationMs, KINDS, type Kind } from '@tollward/documents'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { json, type Row, table } from './output.ts'

/** How an answer is written. */
export interface OutputOptions {
  readonly output: 'table' | 'json'
}

/** A command that answers: with `-o json` as every one of them. */
export function answering(
  parent: Command,
  usage: string,
  description: string,
  options?: { isDefault?: boolean },
): Command {
  const output = new Option('-o, --output <format>', 'how the answer is written')
    .choices(['table', 'json'])
    .default('table')
  return parent
    .command(usage, options ?? {})
    .description(description)
    .addOption(output)
}

/** Rows as a table or as JSON, as the options say. */
export function written(
  rows: readonly Row[],
  columns: readonly string[],
  none: string,
  { output }: OutputOptions,
): string {
  return output === 'json' ? json(rows) : table(rows, columns, none)
}

/** Says that an answer had no room for all; nothing where it had. */
export function leftOutNote(leftOut: number, what: string): string {
  return leftOut === 0 ? '' : `tollward: ${leftOut} ${what} are left out\n`
}

/** A duration such as 60s or 2h, in ms. */
export function duration(text: string): number {
  if (!/^\d{1,9}(ms|s|m|h|d)$/.test(text))
    throw new InvalidArgumentError('It is a whole number and ms, s, m, h or d, such as 60s.')
  return durationMs(text)
}

/** A whole number from 1 on. */
export function count(text: string): number {
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new InvalidArgumentError('It is a whole number from 1 on.')
  return Number(text)
}

/** An option that may be given again: all its values. */
export function several(text: string, before: readonly string[]): readonly string[] {
  return [...before, text]
}

/** A kind of document: in any case, also in the plural. */
export function kind(text: string): Kind {
  const wanted = text.toLowerCase()
  const found = Object.keys(KINDS).find((name) => {
    const lower = name.toLowerCase()
    return [lower, `${lower}s`, lower.replace(/y$/, 'ies')].includes(wanted)
  })
  if (found === undefined) throw new InvalidArgumentError(`The kinds are ${Object.keys(KINDS).join(', ')}.`)
  return found as Kind
}
