import process from 'node:process'
import { runMain } from '@tollward/runtime'
import { Config } from './config.ts'
import { run } from './run.ts'

await runMain({ name: 'sensor-ingest', config: Config, run, process })
