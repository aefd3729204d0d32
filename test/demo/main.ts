// npm run demo: the main job as a tour on the running stack. Each step shows its evidence; the first that is not as said ends it.
import { AssertionError } from 'node:assert/strict'
import { identify } from './identity.ts'
import { watchTheNode } from './kernel.ts'
import { accountForMoney } from './money.ts'
import { payAndCall } from './pay.ts'
import { explainAndBlock } from './policy.ts'
import { attackAndBlock } from './protect.ts'
import { Tour } from './tour.ts'
import { getKnown } from './who.ts'

const startMs = performance.now()
const tour = new Tour()
try {
  const { customer, isSensorOn } = await getKnown(tour)
  const stranger = await payAndCall(tour, customer)
  await accountForMoney(tour)
  await identify(tour, customer)
  await explainAndBlock(tour, customer)
  if (isSensorOn) await watchTheNode(tour, customer)
  await attackAndBlock(tour, { customer, stranger, isSensorOn })
  process.stdout.write(
    `\nThe loop is closed: known, paid, within policy, not blocked. ${((performance.now() - startMs) / 1000).toFixed(1)} s\n`,
  )
} catch (error) {
  process.stdout.write(`\n✖ ${error instanceof Error ? error.message : String(error)}\n`)
  if (!(error instanceof AssertionError)) process.stderr.write(`${error instanceof Error ? error.stack : ''}\n`)
  process.exitCode = 1
}
