import process from 'node:process'
import { runMain } from '@tollward/runtime'
import { Config } from './config.ts'
import { run } from './run.ts'

await runMain({ name: 'alert-router', config: Config, run, process })
