/** One line of an answer: the field names of `-o json` are stable. */
export type Row = Readonly<Record<string, unknown>>

/** Wider cells are cut in tables; JSON has them whole. */
const CELL_WIDTH_MAX = 100

/** Rows as an aligned table with the given columns, or `none` where there are none. */
export function table(rows: readonly Row[], columns: readonly string[], none: string): string {
  if (rows.length === 0) return `${none}\n`
  const lines = [columns.map(heading), ...rows.map((row) => columns.map((column) => cell(row[column])))]
  const widths = columns.map((_, index) => Math.max(...lines.map((line) => line[index]?.length ?? 0)))
  return lines
    .map(
      (line) =>
        `${line
          .map((text, index) => text.padEnd(widths[index] ?? 0))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('')
}

/** Rows as a JSON array. */
export function json(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`
}

/** The fields of one thing, a line each; those without a value are left out. */
export function fields(row: Row): string {
  const shown = Object.entries(row).filter(([, value]) => value !== undefined && value !== '')
  const width = Math.max(...shown.map(([name]) => name.length))
  return shown.map(([name, value]) => `${name.padEnd(width)}  ${printable(String(value))}\n`).join('')
}

/** Text of others on one line, without what a terminal would act on. */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]+/gu, ' ')
}

function heading(column: string): string {
  return column.replace(/[A-Z]/g, ' $&').toUpperCase()
}

function cell(value: unknown): string {
  if (value === undefined || value === null || value === '') return '-'
  const text = printable(String(value))
  return text.length <= CELL_WIDTH_MAX ? text : `${text.slice(0, CELL_WIDTH_MAX - 1)}…`
}

/** What a text is as JSON; the text itself where it is none. */
export function jsonOrText(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}
