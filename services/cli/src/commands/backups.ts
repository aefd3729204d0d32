import { setTimeout as delay } from 'node:timers/promises'
import type { MessageInitShape } from '@bufbuild/protobuf'
import type { ExportLedgerResponse, ImportLedgerRequestSchema, Pass } from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import type { Command } from 'commander'
import { answering, type OutputOptions } from '../arguments.ts'
import { type BackupSummary, checkBackup, readBackup, writeBackup } from '../backup-file.ts'
import { json } from '../output.ts'
import { reconcile } from '../reconciling.ts'
import { mayResume, type Session, type Surroundings, stepByStep, withSession } from '../session.ts'
import { writeReconciled } from './treasury.ts'

/** What one call carries at most: the bus takes a mebibyte. */
const PART_BYTES_MAX = 256 * 1024
const PART_ITEMS_MAX = 200
/** After a restore payment-verifier reads the blocks since the back-up. */
const CATCH_UP_TIMEOUT_MS = 10 * 60_000
const CATCH_UP_POLL_MS = 500

type Part = MessageInitShape<typeof ImportLedgerRequestSchema>

/** `backup` and `restore`. */
export function addBackupCommands(program: Command, surroundings: Surroundings): void {
  const { out } = surroundings
  answering(program, 'backup', 'write the ledger, the address index and the passes to a new file')
    .argument('<file>')
    .action((path: string, { output }: OutputOptions) =>
      withSession(surroundings, 'tollward.admin', async (session) => {
        const summary = await writeBackup(path, parts(session))
        out(output === 'json' ? json({ file: path, ...summary }) : `${path} holds ${sizeOf(summary)}\n`)
      }),
    )

  answering(program, 'restore', 'bring a back-up to a ledger without invoices, and reconcile; may be repeated')
    .argument('<file>')
    .action(async (path: string, options: OutputOptions) => {
      const summary = await checkBackup(path)
      await send(path, summary, surroundings)
      if (options.output === 'table') out(`${sizeOf(summary)} are back; comparing with the chain\n`)
      await caughtUp(surroundings)
      writeReconciled(await reconcile(surroundings, undefined), options, surroundings)
    })
}

async function* parts({ admin, stream }: Session): AsyncGenerator<ExportLedgerResponse> {
  for await (const { part } of admin.exportLedger({}, stream)) if (part) yield part
}

/** Sends part after part; one that got there already changes nothing, so a part is simply sent again. */
async function send(path: string, summary: BackupSummary, surroundings: Surroundings): Promise<void> {
  const sending = partsOf(path, summary)
  let part = await sending.next()
  await stepByStep(surroundings, 'tollward.admin', async ({ admin, call }) => {
    if (part.done) return 'done'
    await admin.importLedger({ part: part.value }, call)
    part = await sending.next()
    return part.done ? 'done' : 'more'
  })
}

async function* partsOf(path: string, summary: BackupSummary): AsyncGenerator<Part> {
  const { network, descriptor, nextAddressIndex, entries: entriesTotal } = summary
  const whole = { network, descriptor, nextAddressIndex, entriesTotal: BigInt(entriesTotal) }
  let entries: Uint8Array[] = []
  let passes: Pass[] = []
  let fromSequence = 1n
  let bytes = 0
  const flush = () => {
    const part = { ...whole, fromSequence, entries, passes }
    fromSequence += BigInt(entries.length)
    entries = []
    passes = []
    bytes = 0
    return part
  }
  for await (const item of readBackup(path)) {
    if ('entry' in item) entries.push(item.entry)
    else {
      // Passes belong to invoices, which have to be there.
      if (entries.length > 0) yield flush()
      passes.push(item.pass)
    }
    bytes += 'entry' in item ? item.entry.length : 0
    if (entries.length + passes.length >= PART_ITEMS_MAX || bytes >= PART_BYTES_MAX) yield flush()
  }
  if (entries.length + passes.length > 0) yield flush()
}

/** Resolves when payment-verifier has looked at every block since the back-up. */
async function caughtUp(surroundings: Surroundings): Promise<void> {
  const endMs = performance.now() + CATCH_UP_TIMEOUT_MS
  for (;;) {
    try {
      await withSession(surroundings, 'tollward.read', async ({ admin, call }) => await admin.getBooks({}, call))
      return
    } catch (error) {
      if (!mayResume(error) || surroundings.signal.aborted) throw error
      if (performance.now() > endMs)
        throw new AppError(
          'deadline_exceeded',
          'The back-up is back, but the chain is not caught up yet: later, run "payments reconcile".',
        )
      await delay(CATCH_UP_POLL_MS, undefined, { signal: surroundings.signal })
    }
  }
}

function sizeOf({ entries, passes, nextAddressIndex }: BackupSummary): string {
  return `${entries} entries and ${passes} passes, up to address ${nextAddressIndex}`
}
