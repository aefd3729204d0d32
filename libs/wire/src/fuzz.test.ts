import { test } from 'node:test'
import { countBlocks, fuzz, fuzzBudget } from '@tollward/testkit/fuzz'

countBlocks(/\/wire\/src\/(?!test|fuzz)/)
const { DICTIONARY, OBSERVED_LANES, observe, readBlocks, readFrames } = await import('./test-fuzz.ts')
const { serveAll } = await import('./test-fuzz-server.ts')
const { SEEDS } = await import('./test-fuzz-seeds.ts')
const HOW = { dictionary: DICTIONARY, lanes: OBSERVED_LANES }

for (const [protocol, seeds, conversations] of [
  ['HTTP/1', SEEDS.observeHttp1, 12_000],
  ['HTTP/2', SEEDS.observeHttp2, 6000],
] as const)
  test(`of any conversation an observer tells each call once and keeps little, beginning with ${protocol}`, (context) => {
    context.diagnostic(JSON.stringify(fuzz({ ...HOW, target: observe, seeds, budget: fuzzBudget(conversations) })))
  })

test('any block of compressed fields is read by whoever came late as by others, and written again', (context) => {
  context.diagnostic(
    JSON.stringify(fuzz({ ...HOW, target: readBlocks, seeds: SEEDS.readBlocks, budget: fuzzBudget(10_000) })),
  )
})

test('any frames are read the same however they were cut, and less than one is kept', (context) => {
  context.diagnostic(
    JSON.stringify(fuzz({ ...HOW, target: readFrames, seeds: SEEDS.readFrames, budget: fuzzBudget(5000) })),
  )
})

test('to any client a server answers each request once, in frames, however its bytes were cut', (context) => {
  context.diagnostic(
    JSON.stringify(fuzz({ ...HOW, target: serveAll, seeds: SEEDS.serveAll, budget: fuzzBudget(5000) })),
  )
})
