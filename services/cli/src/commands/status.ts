import { setTimeout as delay } from 'node:timers/promises'
import { AppError } from '@tollward/errors'
import type { Command } from 'commander'
import { AnswerIsNo } from '../answer.ts'
import { answering, duration, type OutputOptions, written } from '../arguments.ts'
import { statusRow } from '../rows.ts'
import { openSession, type Session, type Surroundings } from '../session.ts'

const POLL_MS = 500

type StatusRow = ReturnType<typeof statusRow>

/** `status`: succeeds when every service that this stack can run is ready. */
export function addStatusCommand(program: Command, surroundings: Surroundings): void {
  answering(program, 'status', 'show the services; succeeds when all that this stack can run are ready')
    .option('--wait [duration]', 'wait until they are ready, by default for 60s', (text) => duration(text))
    .action(async (options: OutputOptions & { wait?: number | true }) => {
      const waitMs = options.wait === true ? 60_000 : (options.wait ?? 0)
      const rows = await statusWithin(waitMs, surroundings)
      surroundings.out(written(rows, ['name', 'state', 'detail'], 'no services', options))
      if (!isUp(rows)) throw new AnswerIsNo()
    })
}

/** The status as soon as everything is ready, or as it is when the time is over. */
async function statusWithin(waitMs: number, surroundings: Surroundings): Promise<StatusRow[]> {
  const endMs = performance.now() + waitMs
  let session: Session | undefined
  try {
    for (;;) {
      let rows: StatusRow[] | undefined
      try {
        session ??= await openSession(surroundings, 'tollward.read')
        rows = (await session.admin.getStatus({}, session.call)).services.map(statusRow)
        if (rows.length === 0) throw new AppError('failed_precondition', 'admin-api was told of no services.')
        if (isUp(rows)) return rows
      } catch (error) {
        session?.[Symbol.dispose]()
        session = undefined
        if (performance.now() >= endMs || surroundings.signal.aborted) throw error
      }
      if (rows && performance.now() >= endMs) return rows
      await delay(POLL_MS, undefined, { signal: surroundings.signal })
    }
  } finally {
    session?.[Symbol.dispose]()
  }
}

/** What the stack cannot run is shown as off and does not count. */
function isUp(rows: readonly StatusRow[]): boolean {
  return rows.every(({ state }) => state === 'ready' || state === 'off')
}
