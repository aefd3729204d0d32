import type { ProgramStatus } from './supervise.ts'

/** Shows people what the stack is doing: one line a program, in place on a terminal, a plain line a change elsewhere. */
export interface Display {
  /** A step of the start, or anything worth a line. */
  line(text: string): void
  status(status: ProgramStatus): void
  /** A program that this stack cannot run, and why. */
  off(name: string, reason: string): void
  /** No more table: what follows is plain text. */
  finish(): void
}

const MARKS: Record<ProgramStatus['state'], string> = {
  starting: '…',
  ready: '✔',
  'not ready': '!',
  restarting: '↻',
  stopped: '·',
}

export interface Output {
  readonly isTTY?: boolean
  write(text: string): unknown
}

/** Makes a display on a stream. */
export function createDisplay(output: Output, logFileOf: (name: string) => string): Display {
  const rows = new Map<string, string>()
  let drawn = 0
  const erase = () => {
    // Up to the first row of the table, and everything below it away.
    if (drawn > 0) output.write(`\x1b[${drawn}A\x1b[J`)
    drawn = 0
  }
  const draw = () => {
    for (const row of rows.values()) output.write(`${row}\n`)
    drawn = rows.size
  }
  const show = (name: string, row: string) => {
    rows.set(name, row)
    if (!output.isTTY) return void output.write(`${row}\n`)
    erase()
    draw()
  }
  return {
    line: (text) => {
      if (output.isTTY) erase()
      output.write(`${text}\n`)
      if (output.isTTY) draw()
    },
    status: ({ name, state, restarts, lastEnd }) => {
      const again =
        restarts === 0 ? '' : `  restarted ${restarts}×${lastEnd === undefined ? '' : `, last end: ${lastEnd}`}`
      show(name, `  ${MARKS[state]} ${name.padEnd(20)} ${state.padEnd(10)} ${logFileOf(name)}${again}`)
    },
    off: (name, reason) => show(name, `  – ${name.padEnd(20)} off        ${reason}`),
    finish: () => {
      drawn = 0
      rows.clear()
    },
  }
}
