import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Bus } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { LoginFailedSchema, LoginFailure } from '@tollward/contracts/token'
import type { Person } from '../../domain/account.ts'
import type { IssuerMetrics } from '../../metrics.ts'
import type { Accounts } from './accounts.ts'
import type { Attempt, Attempts } from './attempts.ts'

const MINUTE_MS = 60_000

/** What somebody who tried to sign in gets. */
export type SignIn =
  | { readonly person: Person }
  | { readonly refused: 'wrong' | 'disabled' }
  | { readonly refused: 'throttled'; readonly retryAfterMs: number }

const FAILURE_LABELS: Partial<Record<LoginFailure, string>> = {
  [LoginFailure.WRONG_PASSWORD]: 'wrong_password',
  [LoginFailure.UNKNOWN_NAME]: 'unknown_name',
  [LoginFailure.DISABLED]: 'disabled',
  [LoginFailure.THROTTLED]: 'throttled',
}

const loginFailed = contract(LoginFailedSchema)

/** Signs people in: counts the attempt, looks at the password, tells of failures. */
export function openSignIn({
  bus,
  accounts,
  attempts,
  metrics,
}: {
  bus: Bus
  accounts: Accounts
  attempts: Attempts
  metrics: IssuerMetrics
}): (attempt: Attempt & { readonly password: string }) => Promise<SignIn> {
  const tell = async ({ name, address }: Attempt, failure: LoginFailure, subject: string, id?: string) => {
    metrics.signIns.inc({ result: FAILURE_LABELS[failure] ?? 'other' })
    const failedAt = timestampFromMs(Date.now())
    const event = create(LoginFailedSchema, { nameHash: attempts.nameHash(name), subject, address, failure, failedAt })
    await bus.publish(loginFailed, event, id === undefined ? {} : { id })
  }

  return async ({ password, ...attempt }) => {
    const counted = await attempts.signIn(attempt)
    if (!counted.admitted) {
      // Refusals cost nobody anything, so there is no end of them: one event a minute for each name and each source, so that
      // they do not push other events out of the stream.
      const id = `login.throttled.${counted.ofHash}.${Math.floor(Date.now() / MINUTE_MS)}`
      await tell(attempt, LoginFailure.THROTTLED, '', id)
      return { refused: 'throttled', retryAfterMs: counted.retryAfterMs }
    }
    const verdict = await accounts.authenticate(attempt.name, password)
    if ('failure' in verdict) {
      await tell(attempt, verdict.failure, verdict.subject)
      return { refused: verdict.failure === LoginFailure.DISABLED ? 'disabled' : 'wrong' }
    }
    await counted.right()
    metrics.signIns.inc({ result: 'right' })
    return verdict
  }
}
