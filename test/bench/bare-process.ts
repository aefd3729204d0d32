import { resolve } from 'node:path'
import process from 'node:process'
import { type RunningProcess, startProcess } from '@tollward/testkit'

/** The client that the bare provider knows. */
export const BARE_CLIENT = { clientId: 'bench', clientSecret: 'a-secret-of-the-bare-provider-as-long-as-ours' }

/** Starts the bare provider. */
export async function startBareProvider(port: number): Promise<RunningProcess> {
  const script = resolve(import.meta.dirname, 'bare-provider.ts')
  const args = [script, String(port), BARE_CLIENT.clientId, BARE_CLIENT.clientSecret]
  await using stack = new AsyncDisposableStack()
  const running = stack.use(await startProcess(process.execPath, args))
  await running.line(/^listening$/)
  stack.move()
  return running
}
