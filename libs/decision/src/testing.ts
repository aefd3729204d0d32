import { hash, randomUUID } from 'node:crypto'
import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { connect } from '@nats-io/transport-node'
import { type Bus, connectBus, provision } from '@tollward/bus'
import {
  bucketContract,
  type CallerName,
  callerKey,
  contract,
  parseRange,
  rangeKey,
  writeCaller,
} from '@tollward/contracts'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { BlockSchema } from '@tollward/contracts/enforcement'
import {
  PassSchema,
  PassState,
  type QuoteResponseSchema,
  RedeemOutcome,
  type RedeemResponseSchema,
  VerifierService,
} from '@tollward/contracts/payment'
import {
  ClientChangedSchema,
  ClientRevokedSchema,
  GrantRevokedSchema,
  IntrospectorService,
  SubjectRevokedSchema,
  type TokenInfoSchema,
  TokenRevokedSchema,
} from '@tollward/contracts/token'
import { documentKey, parseSources, STORED_FORMAT } from '@tollward/documents'
import { createLog } from '@tollward/runtime'
import { type NatsServer, startNatsServer } from '@tollward/testkit'
import { calculateJwkThumbprint, exportJWK, generateKeyPair, SignJWT } from 'jose'
import { Registry } from 'prom-client'
import { TestQuotas } from './testing-quotas.ts'

export { BlockList } from './domain/block-list.ts'
export * from './testing-confusion.ts'
export { rateLimitIndex } from './testing-rate-limits.ts'

/*
 * For tests of decision points: a real nats-server with everything provisioned, and the neighbours of a decision point as
 * peers on the bus that answer with real messages.
 */

const BLOCKS = bucketContract(BlockSchema)
const PASSES = bucketContract(PassSchema)
const DOCUMENTS = bucketContract(StoredDocumentSchema)
const TOKEN_LIFETIME_MS = 600_000

/** Documents as the local stack has them. */
export const EXAMPLE_DOCUMENTS = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: example }
spec:
  hosts: ["*"]
  rules:
    - { name: public, match: { methods: [GET], path: /public }, anonymous: true }
    - name: orders
      match: { methods: [GET, POST], path: /orders }
      require: { token: { scopes: [orders] }, payment: { plan: orders } }
      limit: { requests: 50, perSeconds: 1, by: client }
    - name: order
      match: { methods: [GET], path: "/orders/{id}" }
      require: { token: { scopes: [orders] }, payment: { plan: orders } }
    - { name: echo, match: { methods: [GET], path: /echo }, require: { token: { scopes: [orders] } } }
    - { name: internal, match: { prefix: /internal }, deny: { reason: Internal paths are not served here. } }
---
apiVersion: tollward.dev/v1
kind: Plan
metadata: { name: orders }
spec: { priceSats: 10000, requests: 1000, duration: 24h, confirmations: 1, payWithin: 15m, confirmWithin: 2h }
`

export type TokenAnswer = MessageInitShape<typeof TokenInfoSchema>
export type RedeemAnswer = MessageInitShape<typeof RedeemResponseSchema>
export type QuoteAnswer = MessageInitShape<typeof QuoteResponseSchema>

/** The neighbours of a decision point. */
export interface Neighbours extends AsyncDisposable {
  readonly nats: NatsServer
  readonly bus: Bus
  /** What the introspector knows, by token; it may be changed at any time. */
  readonly tokens: Map<string, TokenAnswer>
  /** What the introspector says instead, from memory, to those who don't ask past it. */
  readonly remembered: Map<string, TokenAnswer>
  /** What the verifier says to a txid; NOTHING_OPEN to others. */
  readonly redemptions: Map<string, RedeemAnswer>
  /** What the verifier says of a plan's price, by plan; others are not sold. */
  readonly quotes: Map<string, QuoteAnswer>
  /** Questions that came, oldest first. */
  readonly asked: {
    readonly introspect: string[]
    readonly redeem: string[]
    readonly lease: string[]
    readonly record: string[]
    readonly quote: string[]
  }
  /** Requests given back, by pass. */
  readonly givenBack: ReadonlyMap<string, number>
  /** Runs before the introspector answers; a test holds an answer back with it. */
  beforeIntrospection: () => Promise<void>
  /** Runs before the verifier answers. */
  beforeVerification: () => Promise<void>
  apply(yaml: string): Promise<void>
  issue(clientId: string, scopes: readonly string[], answer?: TokenAnswer): string
  revoke(token: string): Promise<void>
  revokeClient(clientId: string): Promise<void>
  revokeGrant(grantHash: string): Promise<void>
  revokeSubject(subject: string): Promise<void>
  /** Only says that it was changed. */
  changeClient(clientId: string): Promise<void>
  block(cidr: string, ttlMs?: number): Promise<void>
  lift(cidr: string): Promise<void>
  blockCaller(caller: CallerName, ttlMs?: number): Promise<void>
  liftCaller(caller: CallerName): Promise<void>
  activatePass(clientId: string, plan: string, quotaRequests: number): Promise<string>
  suspendPass(passId: string): Promise<void>
  /** Leases so many requests, as another decision point would. */
  lease(passId: string, holder: string, requests: number): Promise<void>
  stopIntrospector(): Promise<void>
  stopVerifier(): Promise<void>
  /** Lets them answer again. */
  startIntrospector(): void
  startVerifier(): void
}

/** Starts them. */
export async function startNeighbours(): Promise<Neighbours> {
  await using resources = new AsyncDisposableStack()
  const nats = resources.use(await startNatsServer())
  await provisionAll(nats.url)
  const bus = resources.use(await connectTestBus(nats.url, 'admin-api'))
  const tokens: Neighbours['tokens'] = new Map()
  const remembered: Neighbours['remembered'] = new Map()
  const redemptions: Neighbours['redemptions'] = new Map()
  const quotes: Neighbours['quotes'] = new Map()
  const asked: Neighbours['asked'] = { introspect: [], redeem: [], lease: [], record: [], quote: [] }
  const passes = bus.bucket(PASSES)
  const quotas = new TestQuotas(passes)
  const introspector = stoppable(() =>
    bus.serve(IntrospectorService, {
      introspect: async ({ token, pastCache }) => {
        asked.introspect.push(token)
        const info = (pastCache ? undefined : remembered.get(token)) ?? tokens.get(token) ?? { active: false }
        await neighbours.beforeIntrospection()
        return { info: info.active ? withInternalToken(info) : info }
      },
    }),
  )
  const verifier = stoppable(() =>
    bus.serve(VerifierService, {
      redeem: async ({ txid }) => {
        asked.redeem.push(txid)
        await neighbours.beforeVerification()
        return redemptions.get(txid) ?? { outcome: RedeemOutcome.NOTHING_OPEN }
      },
      lease: async ({ passId, holder, wantedRequests }) => {
        asked.lease.push(passId)
        await neighbours.beforeVerification()
        return quotas.lease(passId, holder, wantedRequests)
      },
      record: async ({ passId, holder, servedRequests, ends }) => {
        asked.record.push(passId)
        await neighbours.beforeVerification()
        return quotas.record(passId, holder, servedRequests, ends)
      },
      quote: async ({ clientId, plan }) => {
        asked.quote.push(`${clientId} ${plan}`)
        await neighbours.beforeVerification()
        return quotes.get(plan) ?? { isSold: false }
      },
      listInvoices: async () => ({ invoices: [] }),
    }),
  )
  for (const responder of [introspector, verifier]) {
    responder.start()
    resources.defer(responder.stop)
  }
  const owned = resources.move()
  const range = (cidr: string) => {
    const parsed = parseRange(cidr)
    if (!parsed) throw new RangeError(`not a range: ${cidr}`)
    return parsed
  }
  const neighbours: Neighbours = {
    nats,
    bus,
    tokens,
    remembered,
    redemptions,
    quotes,
    asked,
    givenBack: quotas.givenBack,
    beforeIntrospection: async () => {},
    beforeVerification: async () => {},
    apply: async (yaml) => {
      for (const { document, yaml: text } of parseSources(yaml, 'test')) {
        const { kind, metadata } = document
        const stored = { format: STORED_FORMAT, kind, name: metadata.name, yaml: text }
        await bus.bucket(DOCUMENTS).put(documentKey(kind, metadata.name), create(StoredDocumentSchema, stored))
      }
    },
    issue: (clientId, scopes, answer = {}) => {
      const token = randomUUID()
      const issuedAt = timestampFromMs(Date.now())
      const expiresAt = timestampFromMs(Date.now() + TOKEN_LIFETIME_MS)
      const granted = { clientId, subject: clientId, scopes: [...scopes], audience: [], issuedAt, expiresAt }
      tokens.set(token, { active: true, tokenHash: sha256(token), ...granted, ...answer })
      return token
    },
    revoke: async (token) => {
      tokens.delete(token)
      const event = { tokenHash: sha256(token), revokedAt: timestampFromMs(Date.now()), reason: 'test' }
      await bus.publish(contract(TokenRevokedSchema), create(TokenRevokedSchema, event))
    },
    revokeClient: async (clientId) => {
      for (const [token, info] of tokens) if (info.clientId === clientId) tokens.delete(token)
      const event = { clientId, revokedAt: timestampFromMs(Date.now()), reason: 'test' }
      await bus.publish(contract(ClientRevokedSchema), create(ClientRevokedSchema, event))
    },
    revokeGrant: async (grantHash) => {
      for (const [token, info] of tokens) if (info.grantHash === grantHash) tokens.delete(token)
      const event = { grantHash, revokedAt: timestampFromMs(Date.now()), reason: 'test' }
      await bus.publish(contract(GrantRevokedSchema), create(GrantRevokedSchema, event))
    },
    revokeSubject: async (subject) => {
      for (const [token, info] of tokens) if (info.subject === subject) tokens.delete(token)
      const event = { subject, revokedAt: timestampFromMs(Date.now()), reason: 'test' }
      await bus.publish(contract(SubjectRevokedSchema), create(SubjectRevokedSchema, event))
    },
    changeClient: async (clientId) => {
      const event = { clientId, changedAt: timestampFromMs(Date.now()) }
      await bus.publish(contract(ClientChangedSchema), create(ClientChangedSchema, event))
    },
    block: async (cidr, ttlMs = 60_000) => {
      const expiresAtMs = Date.now() + ttlMs
      const value = { format: 1, ...range(cidr), reason: 'test', expiresAt: timestampFromMs(expiresAtMs) }
      await bus.bucket(BLOCKS).put(rangeKey(range(cidr)), create(BlockSchema, value), { expiresAtMs })
    },
    lift: (cidr) => bus.bucket(BLOCKS).remove(rangeKey(range(cidr))),
    blockCaller: async (caller, ttlMs = 60_000) => {
      const expiresAtMs = Date.now() + ttlMs
      const value = { format: 2, caller: writeCaller(caller), reason: 'test', expiresAt: timestampFromMs(expiresAtMs) }
      await bus.bucket(BLOCKS).put(callerKey(caller), create(BlockSchema, value), { expiresAtMs })
    },
    liftCaller: (caller) => bus.bucket(BLOCKS).remove(callerKey(caller)),
    activatePass: async (clientId, plan, quotaRequests) => {
      const passId = randomUUID()
      const owner = { format: 1, passId, clientId, plan, quotaRequests: BigInt(quotaRequests) }
      const pass = { ...owner, activatedAt: timestampFromMs(Date.now()), state: PassState.ACTIVE }
      await passes.create(passId, create(PassSchema, pass))
      return passId
    },
    suspendPass: async (passId) => {
      const entry = await passes.get(passId)
      if (!entry) throw new RangeError(`no pass ${passId}`)
      await passes.update(passId, { ...entry.value, state: PassState.SUSPENDED }, entry.revision)
    },
    lease: async (passId, holder, requests) => void (await quotas.lease(passId, holder, requests)),
    stopIntrospector: introspector.stop,
    stopVerifier: verifier.stop,
    startIntrospector: introspector.start,
    startVerifier: verifier.start,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
  return neighbours
}

/** A client's DPoP key. */
export interface ProofKey {
  /** What a token that is bound to it names. */
  readonly thumbprint: string
  /** A proof for one request with this token. */
  proof(token: string, htu: string, htm?: string): Promise<string>
}

/** Makes a DPoP key. */
export async function newProofKey(): Promise<ProofKey> {
  const { publicKey, privateKey } = await generateKeyPair('ES256')
  const jwk = await exportJWK(publicKey)
  return {
    thumbprint: await calculateJwkThumbprint(jwk),
    proof: (token, htu, htm = 'GET') =>
      new SignJWT({ htm, htu, ath: hash('sha256', token, 'base64url') })
        .setJti(randomUUID())
        .setIssuedAt()
        .setProtectedHeader({ alg: 'ES256', typ: 'dpop+jwt', jwk })
        .sign(privateKey),
  }
}

/** Connects as a service, with a log that says nothing and metrics of its own. */
export function connectTestBus(servers: string, name: string): Promise<Bus> {
  return connectBus({ servers, name, log: createLog(name, 'silent'), registry: new Registry() })
}

async function provisionAll(servers: string): Promise<void> {
  const connection = await connect({ servers })
  await provision(connection)
  await connection.close()
}

function withInternalToken(info: TokenAnswer): TokenAnswer {
  const internalTokenExpiresAt = timestampFromMs(Date.now() + 60_000)
  return { internalToken: `internal.${info.clientId}.jwt`, internalTokenExpiresAt, ...info }
}

/** A responder that can be stopped, once or again, and started. */
function stoppable(serve: () => AsyncDisposable) {
  let running: AsyncDisposable | undefined
  return {
    start: () => {
      running ??= serve()
    },
    stop: async () => {
      const stopping = running
      running = undefined
      await stopping?.[Symbol.asyncDispose]()
    },
  }
}

function sha256(text: string): string {
  return hash('sha256', text, 'hex')
}
