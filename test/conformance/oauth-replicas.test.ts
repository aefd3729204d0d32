import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { after, before, test } from 'node:test'
import { setTimeout as pause } from 'node:timers/promises'
import { timestampMs } from '@bufbuild/protobuf/wkt'
import { contract } from '@tollward/contracts'
import {
  type RefreshReused,
  RefreshReusedSchema,
  type RefreshRotated,
  RefreshRotatedSchema,
} from '@tollward/contracts/token'
import { eventually, requires } from '@tollward/testkit'
import { type Identity, startIdentity } from '../scenario/identity.ts'
import {
  type Caller,
  codeGrant,
  codeOf,
  FOR_PEOPLE,
  isActive,
  refreshGrant,
  tokenRequest,
  tokensIn,
} from './code-flow.ts'
import { assertOAuthError } from './oauth.ts'
import { Person } from './person.ts'

const skip = await requires({ tools: ['nats-server'] })

const SESSIONS = 32
/** How often each replica is killed. */
const KILLS = 1
/** Uses of one refresh token at the same time. */
const TABS = 2
/** Longer than any outage that the test makes, shorter than what a client can wait: the grace window. */
const OUTAGE_MAX_MS = 9000
/** A client that has waited so long asks again: what it asked first may hang in a replica that waits for the bus. */
const PATIENCE_MS = 2000

/** So long after its use a refresh token may come again, and a little more for whoever counts from the event. */
const GRACE_MS = 10_500

/** One client on one device: the tokens that it has had. */
interface Session {
  readonly caller: Caller
  /** Refresh tokens in the order in which it got them; the last one is the one that it has. */
  readonly refreshTokens: string[]
  accessToken: string
}

let identity: Identity
let sessions: Session[]
const rotations: RefreshRotated[] = []
const reuses: RefreshReused[] = []
const resources = new AsyncDisposableStack()

before(async () => {
  if (skip !== false) return
  identity = resources.use(await startIdentity({ replicas: 2, sync: 'always' }))
  resources.use(
    await identity.bus.follow(contract(RefreshRotatedSchema), 'beginning', (event) => rotations.push(event)),
  )
  resources.use(await identity.bus.follow(contract(RefreshReusedSchema), 'beginning', (event) => reuses.push(event)))
  const person = await Person.create(identity)
  sessions = []
  for (let index = 0; index < SESSIONS; index++) sessions.push(await openSession(person, `device-${index}`))
})
after(() => resources.disposeAsync())

async function openSession(person: Person, clientId: string): Promise<Session> {
  await identity.apply('Client', clientId, { ...FOR_PEOPLE, authentication: 'none' })
  const caller = { clientId, secret: undefined }
  const { code, verifier } = await codeOf(identity, person, clientId)
  const { accessToken, refreshToken } = tokensIn(await tokenRequest(identity, caller, codeGrant(code, verifier)))
  return { caller, refreshTokens: [refreshToken], accessToken }
}

let cut = 0

/** Refreshes as a client does: what is cut off, or told to come again, is tried again with the same token. */
async function refresh({ caller, refreshTokens }: Session): Promise<{ refreshToken: string; accessToken: string }> {
  const grant = refreshGrant(refreshTokens.at(-1) ?? '')
  return await eventually(
    async () => {
      let answer: Awaited<ReturnType<typeof tokenRequest>> | undefined
      try {
        answer = await Promise.race([tokenRequest(identity, caller, grant), pause(PATIENCE_MS, undefined)])
      } catch (error) {
        assert.ok(error instanceof TypeError, 'only a connection that broke is tried again')
        cut += 1
        return undefined
      }
      if (!answer || answer.status === 503) return undefined
      // Anything else is final: a session that hears it is lost.
      return answer
    },
    { what: 'the refresh is answered', timeoutMs: OUTAGE_MAX_MS, intervalMs: 50 },
  ).then(tokensIn)
}

async function refreshInAllTabs(session: Session): Promise<void> {
  const answers = await Promise.all(Array.from({ length: TABS }, () => refresh(session)))
  const successors = new Set(answers.map(({ refreshToken }) => refreshToken))
  assert.equal(successors.size, 1, 'one refresh token has two successors')
  const [first] = answers
  assert.ok(first)
  session.refreshTokens.push(first.refreshToken)
  session.accessToken = first.accessToken
}

test('32 sessions go on refreshing while issuers are killed in turn and nats-server restarts: none is lost, none forks', {
  skip,
}, async () => {
  const over = new AbortController()
  const refreshing = sessions.map(async (session) => {
    while (!over.signal.aborted) await refreshInAllTabs(session)
  })
  const trouble = async () => {
    for (let round = 0; round < KILLS; round++) {
      for (const issuer of identity.issuers) {
        await roundTrip()
        await issuer.kill('SIGKILL')
        await issuer.start()
      }
    }
    await roundTrip()
    await identity.nats.kill()
    await identity.nats.start()
    await roundTrip()
    over.abort()
  }
  await Promise.all([trouble(), ...refreshing])
  assert.ok(cut > 0, 'no request was cut off')

  for (const session of sessions) {
    await refreshInAllTabs(session)
    assert.equal(await isActive(identity, session.accessToken), true, `${session.caller.clientId} lost its grant`)
  }
  const steps = sessions.reduce((sum, { refreshTokens }) => sum + refreshTokens.length - 1, 0)
  await eventually(() => new Set(rotations.map(({ tokenHash }) => tokenHash)).size === steps, {
    what: `each of ${steps} rotations is told of`,
  })
  const successors = new Map<string, string>()
  for (const { tokenHash, successorHash } of rotations) {
    assert.equal(successors.get(tokenHash) ?? successorHash, successorHash, 'a token was told to have two successors')
    successors.set(tokenHash, successorHash)
  }
  assert.equal(reuses.length, 0, 'an honest client was taken for a thief')
})

/** Resolves when every session has refreshed once more: there is traffic, and nobody is waiting for what was done before. */
async function roundTrip(): Promise<void> {
  const before = sessions.map(({ refreshTokens }) => refreshTokens.length)
  await eventually(() => sessions.every(({ refreshTokens }, index) => refreshTokens.length > (before[index] ?? 0)), {
    what: 'every session refreshes once more',
    timeoutMs: 30_000,
  })
}

test('a refresh token from long ago ends its session alone, at whichever replica', { skip }, async () => {
  const [stolen, ...others] = sessions
  assert.ok(stolen)
  const [oldest = ''] = stolen.refreshTokens
  const use = rotations.find(({ tokenHash }) => tokenHash === hash('sha256', oldest, 'hex'))
  assert.ok(use?.rotatedAt)
  const graceEndsMs = timestampMs(use.rotatedAt) + GRACE_MS
  await eventually(() => Date.now() > graceEndsMs, { what: 'the grace window is over', timeoutMs: 2 * GRACE_MS })
  assertOAuthError(await tokenRequest(identity, stolen.caller, refreshGrant(oldest)), 'invalid_grant', 400)
  assert.equal(await isActive(identity, stolen.accessToken), false)
  const last = refreshGrant(stolen.refreshTokens.at(-1) ?? '')
  assertOAuthError(await tokenRequest(identity, stolen.caller, last), 'invalid_grant', 400)
  await eventually(() => reuses.length === 1, { what: 'the reuse is told of' })
  for (const session of others.slice(0, 8)) assert.equal(await isActive(identity, session.accessToken), true)
})
