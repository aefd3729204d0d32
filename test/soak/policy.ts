import { holdAgainstReference } from '@tollward/decision/testing-policy'

/** Random policies; each is asked about three random requests. */
const POLICIES = 100_000
const POLICIES_AT_ONCE = 10_000

/** Holds the policy engine against a plain reading of the order of rules. Takes as long as it takes, whatever the minutes. */
export async function soakPolicy(): Promise<boolean> {
  const seed = Date.now() % 1_000_000_000
  let decided = 0
  let refused = 0
  for (let done = 0; done < POLICIES; done += POLICIES_AT_ONCE) {
    try {
      const counts = holdAgainstReference(POLICIES_AT_ONCE, seed + done)
      decided += counts.decided
      refused += counts.refused
    } catch (error) {
      process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`)
      return false
    }
    process.stdout.write(
      `policy: ${done + POLICIES_AT_ONCE} policies, ${decided} requests decided by a rule, ${refused} refused as unclear, seed ${seed}\n`,
    )
  }
  return true
}
