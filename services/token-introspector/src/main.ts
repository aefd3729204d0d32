import process from 'node:process'
import { runMain } from '@tollward/runtime'
import { ConfigSchema } from './config.ts'
import { run } from './run.ts'

await runMain({ name: 'token-introspector', config: ConfigSchema, run, process })
