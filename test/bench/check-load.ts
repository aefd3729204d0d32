// A process of check.bench.ts: asks for Check decisions, and nothing else, so that its own collector of garbage has little to do.
import process from 'node:process'
import { questions, target } from './check-questions.ts'
import { goFirst } from './cores.ts'
import { type GrpcEffort, type GrpcLoad, grpcLoad } from './grpc-load.ts'

/** What to ask of whom, and how hard. `any`: every answer counts, admitted or not. */
export interface LoadOrder {
  readonly port: number
  readonly kind: 'plain' | 'paid'
  readonly any: boolean
  readonly effort: GrpcEffort
}

/** What comes back. */
export type LoadReport = GrpcLoad | { readonly failure: string }

let next: Record<LoadOrder['kind'], () => Uint8Array> | undefined
process.on('message', (message: { tokens: string[] } | LoadOrder) => {
  if ('tokens' in message) next = { plain: questions(message.tokens, 'plain'), paid: questions(message.tokens, 'paid') }
  else
    ask(message).then(
      (load) => process.send?.(load),
      (error: unknown) => process.send?.({ failure: String(error) }),
    )
})
goFirst()
process.once('disconnect', () => process.exit())

async function ask({ port, kind, any, effort }: LoadOrder): Promise<LoadReport> {
  if (!next) throw new Error('no tokens were told')
  const asked = target(port, next[kind])
  return await grpcLoad(any ? { ...asked, accepts: () => true } : asked, effort)
}
