import process from 'node:process'
import { fileURLToPath } from 'node:url'
import { runCommand } from './program.ts'

// A reader that ended, such as head, is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1))
const ended = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => ended.abort())

process.exitCode = await runCommand(process.argv.slice(2), {
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
  stdin: process.stdin,
  operatorFile:
    process.env.TOLLWARD_OPERATOR_FILE ?? fileURLToPath(new URL('../../../.tollward/operator.json', import.meta.url)),
  signal: ended.signal,
})
