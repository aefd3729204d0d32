// npm run soak [-- NAME] [--minutes N]: the long counts of which npm test runs a small share.
import { parseArgs } from 'node:util'
import { soakCalls } from './calls.ts'
import { soakPackets } from './packets.ts'
import { soakParsers } from './parsers.ts'
import { soakPayments } from './payments.ts'
import { soakPolicy } from './policy.ts'
import { soakStack } from './stack.ts'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { minutes: { type: 'string', default: '30' } },
})
const SOAKS: Readonly<Record<string, (minutes: number) => Promise<boolean>>> = {
  stack: soakStack,
  payments: soakPayments,
  policy: soakPolicy,
  packets: soakPackets,
  calls: soakCalls,
  parsers: soakParsers,
}

const wanted = positionals.length === 0 ? Object.keys(SOAKS) : positionals
let held = true
for (const name of wanted) {
  const soak = SOAKS[name]
  if (!soak) {
    process.stderr.write(`There is no soak "${name}"; there are: ${Object.keys(SOAKS).join(', ')}\n`)
    process.exit(1)
  }
  held = (await soak(Number(values.minutes))) && held
}
process.exit(held ? 0 : 1)
