import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'

const MODEL = join(import.meta.dirname, '../../services/payment-verifier/src/model.test.ts')

/** Lets payers, miners and crashes do what they like for so many minutes, and holds all that comes of it against the model. */
export async function soakPayments(minutes: number): Promise<boolean> {
  const run = spawn(process.execPath, [MODEL, String(minutes)], { stdio: 'inherit' })
  const [code] = await once(run, 'exit')
  return code === 0
}
