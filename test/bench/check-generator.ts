import { fork } from 'node:child_process'
import { once } from 'node:events'
import type { LoadOrder, LoadReport } from './check-load.ts'
import type { GrpcLoad } from './grpc-load.ts'

/** A process that asks; one order at a time. */
export interface Generator extends Disposable {
  ask(order: LoadOrder): Promise<GrpcLoad>
}

/**
 * Starts the generator of load. In a process of its own, for what the benchmark keeps in memory would stop it whenever it is collected; and
 * without threads that collect, which would take turns with it on its one core.
 */
export function startGenerator(tokens: readonly string[]): Generator {
  const child = fork(new URL('check-load.ts', import.meta.url), {
    execArgv: ['--single-threaded-gc'],
    serialization: 'advanced',
  })
  const ended = once(child, 'exit').then(() => {
    throw new Error('the generator of load has ended')
  })
  ended.catch(() => {})
  child.send({ tokens })
  return {
    ask: async (order) => {
      child.send(order)
      const [report] = (await Promise.race([once(child, 'message'), ended])) as [LoadReport]
      if ('failure' in report) throw new Error(report.failure)
      return report
    },
    [Symbol.dispose]: () => child.kill(),
  }
}
