import { spawn } from 'node:child_process'
import { text } from 'node:stream/consumers'
import { AppError } from '@tollward/errors'
import { NFT_TABLE } from '../domain/nft.ts'

/** Where nothing is asked of nft, it answers in milliseconds; a table of fifty thousand addresses takes it a second. */
const TIMEOUT_MS = 30_000
const SAID_MAX = 500
/** Also of a service whose PATH has no directories of administrators. */
const PATH = '/usr/sbin:/usr/bin:/sbin:/bin'

/** Of a table: packets by the name of their counter, and the number of rules in its chains. */
interface NftTable {
  readonly counters: ReadonlyMap<string, bigint>
  readonly rules: number
}

/** Whether there is a program nft that may change the tables of this network; otherwise why not. */
export async function whyNoNft(): Promise<string | undefined> {
  try {
    await nft(['--check', '--file', '-'], `table ${NFT_TABLE}\n`)
    return undefined
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

/** Runs a script, whole or not at all. AppError `failed_precondition` with what nft says if it does not take it. */
export async function runNft(script: string): Promise<void> {
  await nft(['--file', '-'], script)
}

/** Takes the table away, if there is one. Returns whether there was. */
export async function removeTable(): Promise<boolean> {
  return (await unlessGone(nft(['delete', 'table', ...NFT_TABLE.split(' ')]))) !== undefined
}

/** What the kernel has of the table; undefined if there is none. */
export async function readTable(): Promise<NftTable | undefined> {
  // Terse: without what its sets hold, which may be much.
  const said = await unlessGone(nft(['--json', '--terse', 'list', 'table', ...NFT_TABLE.split(' ')]))
  if (said === undefined) return undefined
  const { nftables } = JSON.parse(said) as {
    nftables: readonly { readonly counter?: { readonly name: string; readonly packets: number }; rule?: object }[]
  }
  return {
    counters: new Map(
      nftables.flatMap(({ counter }) => (counter ? [[counter.name, BigInt(counter.packets)] as const] : [])),
    ),
    rules: nftables.filter(({ rule }) => rule !== undefined).length,
  }
}

async function unlessGone(said: Promise<string>): Promise<string | undefined> {
  try {
    return await said
  } catch (error) {
    if (error instanceof AppError && /No such file or directory/.test(error.message)) return undefined
    throw error
  }
}

async function nft(args: readonly string[], input = ''): Promise<string> {
  const child = spawn('nft', args, { env: { PATH }, timeout: TIMEOUT_MS, stdio: 'pipe' })
  // It may refuse a script before it has read the end of it.
  child.stdin.on('error', () => undefined).end(input)
  const failed = new Promise<never>((_, reject) => {
    child.once('error', (cause) => reject(new AppError('failed_precondition', `nft: ${cause.message}`, { cause })))
  })
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve))
  const [said, complaint, code] = await Promise.race([
    failed,
    Promise.all([text(child.stdout), text(child.stderr), ended]),
  ])
  if (code === 0) return said
  throw new AppError('failed_precondition', `nft does not take it: ${complaint.trim().slice(0, SAID_MAX)}`)
}
