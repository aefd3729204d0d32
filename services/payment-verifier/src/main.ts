import process from 'node:process'
import { runMain } from '@tollward/runtime'
import { Config } from './config.ts'
import { run } from './run.ts'

await runMain({ name: 'payment-verifier', config: Config, run, process })
