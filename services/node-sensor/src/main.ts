import process from 'node:process'
import { runMain } from '@tollward/runtime'
import { answer } from './commands.ts'
import { ConfigSchema } from './config.ts'
import { run } from './run.ts'

const [, , command] = process.argv
const { code, text } = await answer(command, process.env)
if (command === undefined && code === 0) await runMain({ name: 'node-sensor', config: ConfigSchema, run, process })
if (text !== '') process[code === 0 ? 'stdout' : 'stderr'].write(`${text}\n`)
process.exit(code)
