import process from 'node:process'
import { runMain } from '@tollward/runtime'
import { ConfigSchema } from './config.ts'
import { run } from './run.ts'

const surroundings = {
  stdout: process.stdout,
  onHangup: (listener: () => void) => void process.on('SIGHUP', listener),
}
await runMain({ name: 'gateway', config: ConfigSchema, run: (context) => run(context, surroundings), process })
