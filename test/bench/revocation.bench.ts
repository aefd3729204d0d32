import assert from 'node:assert/strict'
import { setTimeout as pause } from 'node:timers/promises'
import { connect, type NatsConnection } from '@nats-io/transport-node'
import { FOR_PEOPLE, tokensOf } from '../conformance/code-flow.ts'
import { Person } from '../conformance/person.ts'
import { checkStatus, type DecisionPoints, startDecisionPoints } from '../scenario/decision-points.ts'
import { type Identity, startIdentity } from '../scenario/identity.ts'
import { publishAndReceive } from './bare-nats.ts'
import { exchange } from './http-load.ts'
import { percentile } from './latencies.ts'

export const name = 'revocation: revoked at auth-issuer → refused by gateway and authorizer'

/** What is promised of the slowest hundredth, counted from the acknowledged revocation. */
const P99_MAX_MS = 5

const PATH = '/echo'
const REVOKED = 'bench'
/** The client that a person lets act, again and again. */
const APPLICATION = 'bench-application'

/** Requests a second of other clients while revocations are measured. */
const LOAD_PER_SECOND = 200

/** Between an answer and the next question: asking without end would be what is measured. */
const ASK_PAUSE_MS = 1

/** How many of each kind are revoked. */
export type Counts = Readonly<Record<Kind, number>>
type Kind = 'token' | 'client' | 'grant' | 'subject'
const FULL: Counts = { token: 400, client: 300, grant: 250, subject: 50 }

/** One line of the table; milliseconds. */
export interface Row {
  readonly [column: string]: string | number
}

interface Bench {
  readonly identity: Identity
  readonly points: DecisionPoints
  readonly sender: NatsConnection
  readonly receiver: NatsConnection
  readonly person: Person
}

/** One revocation, from when it was sent. */
interface Measured {
  readonly kind: Kind
  readonly bareMs: number
  readonly acknowledgedMs: number
  /** When the refusal came. */
  readonly gatewayMs: number
  readonly authorizerMs: number
  /** When the question was asked that was the first to be refused, of both the later one: from then on nothing was let through. */
  readonly inForceMs: number
}

/** The first refusal, by this process's clock. */
interface Refusal {
  readonly askedMs: number
  readonly cameMs: number
}

/**
 * Each round first publishes a bare NATS message between two connections of this process. Then a token that gateway and
 * authorizer have just admitted, and so have in their memories, is revoked in one of the ways there are, while both are asked
 * every millisecond until they refuse. A refusal counts when it has come in here, so each figure has up to a millisecond and a
 * question's time too much.
 */
export async function run(counts: Counts = FULL): Promise<{ rows: Row[] }> {
  await using resources = new AsyncDisposableStack()
  secrets.clear()
  const identity = resources.use(await startIdentity({ sync: 'always' }))
  const points = resources.use(await startDecisionPoints(identity))
  const { url } = identity.nats
  const [sender, receiver] = [await connect({ servers: url }), await connect({ servers: url })]
  resources.defer(async () => {
    await sender.close()
    await receiver.close()
  })
  const person = await Person.create(identity)
  const bench: Bench = { identity, points, sender, receiver, person }
  const stopped = new AbortController()
  const steady = loadSteadily(bench, stopped.signal)
  const measured: Measured[] = []
  for (const kind of shuffled(counts)) measured.push(await revokeOne(bench, kind, measured.length))
  stopped.abort()
  const others = await steady
  return {
    rows: [
      ...rowsOf(measured),
      ...verdicts(measured),
      { what: 'requests of other clients, all admitted', count: others },
    ],
  }
}

/** The kinds in an order in which none has a part of the run for itself. */
function shuffled(counts: Counts): Kind[] {
  const kinds = (Object.keys(counts) as Kind[]).flatMap((kind) =>
    Array.from({ length: counts[kind] }, (_, index) => ({ kind, at: (index + 0.5) / counts[kind] })),
  )
  return kinds.sort((a, b) => a.at - b.at).map(({ kind }) => kind)
}

async function revokeOne(bench: Bench, kind: Kind, index: number): Promise<Measured> {
  const { identity, points, sender, receiver } = bench
  const { token, target } = await prepared(bench, kind, index)
  const headers = { authorization: `Bearer ${token}` }
  assert.equal((await fetch(points.gatewayUrl + PATH, { headers })).status, 200)
  assert.equal(await checkStatus(points.check, PATH, headers), 200)
  const bareMs = await publishAndReceive(sender, receiver)
  const began = Promise.withResolvers<void>()
  const gateway = refusedByGateway(points, token, () => began.resolve())
  const authorizer = refusedByAuthorizer(points, headers)
  // Both are being asked before anything is revoked.
  await began.promise
  const beganMs = performance.now()
  const { revoked } = await identity.issuerRpc.revoke({ target, reason: 'bench' })
  const acknowledgedMs = performance.now() - beganMs
  assert.equal(revoked, true)
  const [gatewayAt, authorizerAt] = await Promise.all([gateway, authorizer])
  return {
    kind,
    bareMs,
    acknowledgedMs,
    gatewayMs: gatewayAt.cameMs - beganMs,
    authorizerMs: authorizerAt.cameMs - beganMs,
    inForceMs: Math.max(gatewayAt.askedMs, authorizerAt.askedMs) - beganMs,
  }
}

type Target = NonNullable<Parameters<Identity['issuerRpc']['revoke']>[0]['target']>

/** A new token, and what to revoke so that it ends. */
async function prepared(
  { identity, person }: Bench,
  kind: Kind,
  index: number,
): Promise<{ token: string; target: Target }> {
  if (kind === 'token' || kind === 'client') {
    const clientId = kind === 'client' ? `${REVOKED}-${index}` : REVOKED
    const token = await tokenOf(identity, clientId, await secretOf(identity, clientId))
    return { token, target: kind === 'token' ? { case: 'token', value: token } : { case: 'clientId', value: clientId } }
  }
  const application = { clientId: APPLICATION, secret: await secretOf(identity, APPLICATION, FOR_PEOPLE) }
  const { accessToken } = await tokensOf(identity, person, application)
  const { info } = await identity.issuerRpc.exchange({ token: accessToken })
  assert.ok(info?.active)
  return {
    token: accessToken,
    target:
      kind === 'grant' ? { case: 'grantHash', value: info.grantHash } : { case: 'subject', value: person.subject },
  }
}

/** Of the clients of this run. */
const secrets = new Map<string, string>()

const MACHINE = { grants: ['client_credentials'], scopes: ['orders'] }

async function secretOf(identity: Identity, clientId: string, spec: object = MACHINE): Promise<string> {
  const known = secrets.get(clientId)
  if (known !== undefined) return known
  const secret = await identity.register(clientId, spec)
  secrets.set(clientId, secret)
  return secret
}

async function tokenOf({ issuerUrl }: Identity, clientId: string, clientSecret: string): Promise<string> {
  const response = await fetch(`${issuerUrl}/token`, {
    method: 'POST',
    headers: { authorization: `Basic ${Buffer.from(`${clientId}:${clientSecret}`).toString('base64')}` },
    body: new URLSearchParams({ grant_type: 'client_credentials' }),
  })
  const { access_token } = (await response.json()) as { access_token?: string }
  assert.ok(access_token, 'the issuer gave no token')
  return access_token
}

/** Asks until it is refused. */
async function refusedByGateway({ gatewayPort }: DecisionPoints, token: string, onFirst: () => void): Promise<Refusal> {
  const request = Buffer.from(
    `GET ${PATH} HTTP/1.1\r\nhost: 127.0.0.1:${gatewayPort}\r\nauthorization: Bearer ${token}\r\n\r\n`,
  )
  let latencyMs = 0
  let refusal: Refusal | undefined
  const accepts = (answer: Buffer) => {
    const status = answer.toString('latin1', 9, 12)
    const cameMs = performance.now()
    if (status === '401') refusal = { askedMs: cameMs - latencyMs, cameMs }
    else onFirst()
    return status === '200' || status === '401'
  }
  const onLatency = (ms: number) => {
    latencyMs = ms
  }
  const target = { port: gatewayPort, next: () => request, accepts }
  await exchange(target, () => refusal === undefined, { onLatency, pauseMs: ASK_PAUSE_MS })
  assert.ok(refusal)
  return refusal
}

async function refusedByAuthorizer({ check }: DecisionPoints, headers: { authorization: string }): Promise<Refusal> {
  while (true) {
    const askedMs = performance.now()
    const status = await checkStatus(check, PATH, headers)
    if (status === 401) return { askedMs, cameMs: performance.now() }
    assert.equal(status, 200)
    await pause(ASK_PAUSE_MS)
  }
}

/** Calls as another client, whose token nobody revokes, until the signal; gives how many there were. */
async function loadSteadily({ identity, points }: Bench, signal: AbortSignal): Promise<number> {
  const clientId = `${REVOKED}-not`
  const token = await tokenOf(identity, clientId, await secretOf(identity, clientId))
  const headers = { authorization: `Bearer ${token}` }
  let calls = 0
  while (!signal.aborted) {
    const response = await fetch(points.gatewayUrl + PATH, { headers })
    await response.arrayBuffer()
    assert.equal(response.status, 200, 'a client that nobody revoked was refused')
    calls += 1
    await pause(1000 / LOAD_PER_SECOND)
  }
  return calls
}

function rowsOf(measured: readonly Measured[]): Row[] {
  const later = ({ gatewayMs, authorizerMs }: Measured) => Math.max(gatewayMs, authorizerMs)
  const since = (value: (each: Measured) => number) => (each: Measured) =>
    Math.max(0, value(each) - each.acknowledgedMs)
  const inForce = ({ inForceMs }: Measured) => inForceMs
  const ofKind = (kind: Kind) => measured.filter((each) => each.kind === kind)
  const kinds = [...new Set(measured.map(({ kind }) => kind))]
  return [
    row('bare NATS, publish → receive', measured, ({ bareMs }) => bareMs),
    row('revocation sent → acknowledged', measured, ({ acknowledgedMs }) => acknowledgedMs),
    row('sent → refused by the gateway', measured, ({ gatewayMs }) => gatewayMs),
    row('sent → refused by the authorizer', measured, ({ authorizerMs }) => authorizerMs),
    row(
      'acknowledged → refused by the gateway',
      measured,
      since(({ gatewayMs }) => gatewayMs),
    ),
    row(
      'acknowledged → refused by the authorizer',
      measured,
      since(({ authorizerMs }) => authorizerMs),
    ),
    row('acknowledged → in force at both: asked from then on, it is refused', measured, since(inForce)),
    ...kinds.map((kind) => row(`acknowledged → refused by both, of a ${kind}`, ofKind(kind), since(later))),
  ]
}

/** Not an error: on a busy machine bare NATS, in the first line, is as slow. */
function verdicts(measured: readonly Measured[]): Row[] {
  const verdict = (what: string, value: (each: Measured) => number) => {
    const values = measured.map((each) => value(each) - each.acknowledgedMs)
    return {
      what: `acknowledged → ${what}, p99 < ${P99_MAX_MS} ms: ${percentile(values, 0.99) < P99_MAX_MS ? 'yes' : 'NO'}`,
    }
  }
  return [
    verdict('in force at both', ({ inForceMs }) => inForceMs),
    verdict('refused by both', ({ gatewayMs, authorizerMs }) => Math.max(gatewayMs, authorizerMs)),
  ]
}

function row(what: string, measured: readonly Measured[], value: (each: Measured) => number): Row {
  const values = measured.map(value)
  const maxMs = percentile(values, 1)
  return { what, count: values.length, p50Ms: percentile(values, 0.5), p99Ms: percentile(values, 0.99), maxMs }
}
