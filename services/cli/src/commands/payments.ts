import type { Command } from 'commander'
import { answering, count, type OutputOptions, written } from '../arguments.ts'
import { json } from '../output.ts'
import { invoiceRow, passRow } from '../rows.ts'
import { type Surroundings, withSession } from '../session.ts'

const INVOICE_COLUMNS = [
  'invoiceId',
  'clientId',
  'plan',
  'state',
  'listPriceSats',
  'creditUsedSats',
  'amountSats',
  'receivedSats',
  'creditedSats',
  'confirmations',
  'payBy',
]
const PASS_COLUMNS = ['passId', 'clientId', 'plan', 'state', 'quotaRequests', 'leasedRequests', 'leases', 'expiresAt']

/** `invoices`, `passes` and `regtest`. */
export function addPaymentCommands(program: Command, surroundings: Surroundings): void {
  answering(program, 'invoices', 'show invoices')
    .option('--client <name>', 'of this client only')
    .option('--limit <number>', 'at most so many', count, 100)
    .action((options: OutputOptions & { client?: string; limit: number }) =>
      withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
        const request = { clientId: options.client ?? '', limit: options.limit }
        const { invoices } = await admin.listInvoices(request, call)
        surroundings.out(written(invoices.map(invoiceRow), INVOICE_COLUMNS, 'no invoices', options))
      }),
    )

  answering(program, 'passes', 'show what payments bought')
    .option('--client <name>', 'of this client only')
    .action((options: OutputOptions & { client?: string }) =>
      withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
        const { passes } = await admin.listPasses({ clientId: options.client ?? '' }, call)
        surroundings.out(written(passes.map(passRow), PASS_COLUMNS, 'no passes', options))
      }),
    )

  const regtest = program.command('regtest').description('play the customer and the miner, on a regtest chain only')
  answering(regtest, 'pay', "pay a bitcoin: URI from the node's wallet")
    .argument('<uri>')
    .action((uri: string, { output }: OutputOptions) =>
      withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        const { txid } = await admin.payRegtest({ uri }, call)
        surroundings.out(output === 'json' ? json({ txid }) : `${txid}\n`)
      }),
    )
  answering(regtest, 'mine', 'mine blocks')
    .argument('<blocks>', 'how many', count)
    .action((blocks: number, { output }: OutputOptions) =>
      withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        const { height } = await admin.mineRegtest({ blocks }, call)
        surroundings.out(output === 'json' ? json({ height }) : `the chain has height ${height}\n`)
      }),
    )
}
