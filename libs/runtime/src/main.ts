import { AppError } from '@tollward/errors'
import type { Logger } from 'pino'
import { collectDefaultMetrics, Registry } from 'prom-client'
import type { z } from 'zod'
import { type processConfig, readConfig } from './config.ts'
import { type Health, startHealthServer } from './health.ts'
import { calmHelperThreads } from './helper-threads.ts'
import { createLog } from './log.ts'
import { keepNewObjectsYoung } from './young-objects.ts'

/** A service that does not close within this time is ended. */
const SHUTDOWN_MAX_MS = 10_000

/** What a service's run() works with. */
export interface ServiceContext<Config> {
  readonly name: string
  readonly config: Config
  readonly log: Logger
  readonly registry: Registry
  readonly health: Health
  /** Aborted when the process should end. */
  readonly signal: AbortSignal
}

/** The parts of `process` that a service's main hands over. */
export type Process = Pick<NodeJS.Process, 'env' | 'exit' | 'once' | 'stderr'>

/**
 * Runs a service until SIGINT or SIGTERM: configuration, log, metrics and health first, then `run`, which returns when its
 * signal is aborted and everything it opened is closed. Exit codes: 0 after an orderly end, 1 after a failure, 2 for a wrong
 * configuration.
 */
export async function runMain<
  Schema extends z.ZodObject<Omit<typeof processConfig, 'healthPort'> & { healthPort: z.ZodType<number> }>,
>(service: {
  readonly name: string
  readonly config: Schema
  readonly run: (context: ServiceContext<z.output<Schema>>) => Promise<void>
  readonly process: Process
}): Promise<void> {
  const { name, process } = service
  const config = configOrExit(name, service.config, process)
  const base = config as z.output<z.ZodObject<typeof processConfig>>
  const log = createLog(name, base.logLevel)
  const registry = new Registry()
  keepNewObjectsYoung()
  calmHelperThreads()
  collectDefaultMetrics({ register: registry })
  const abort = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => abort.abort())
  process.once('unhandledRejection', (error: unknown) => {
    log.fatal({ err: error }, 'promise was rejected and nobody handled it')
    process.exit(1)
  })
  try {
    await using health = await startHealthServer({ host: base.healthHost, port: base.healthPort, registry })
    abort.signal.addEventListener('abort', () => {
      health.stopping()
      setTimeout(() => {
        log.error('closing took too long')
        process.exit(1)
      }, SHUTDOWN_MAX_MS).unref()
    })
    log.info('starting')
    await service.run({ name, config, log, registry, health, signal: abort.signal })
    log.info('ended')
  } catch (error) {
    log.fatal({ err: error }, 'failed')
    process.exit(1)
  }
  process.exit(0)
}

function configOrExit<Schema extends z.ZodObject>(name: string, schema: Schema, process: Process): z.output<Schema> {
  try {
    return readConfig(schema, process.env)
  } catch (error) {
    process.stderr.write(`${name}: ${error instanceof AppError ? error.message : String(error)}\n`)
    return process.exit(2)
  }
}

/** Resolves when the signal is aborted: what a run() waits for once everything is open. */
export function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve()
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
}
