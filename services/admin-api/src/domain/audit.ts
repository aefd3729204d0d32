import { hash } from 'node:crypto'
import type { MessageShape } from '@bufbuild/protobuf'
import { formatCaller, readCaller } from '@tollward/contracts'
import type { AdminService } from '@tollward/contracts/admin'
import type { Scope } from './access.ts'

type Methods = (typeof AdminService)['method']
export type MethodName = keyof Methods
export type RequestOf<Name extends MethodName> = MessageShape<Methods[Name]['input']>

/** What each method needs. Those that need tollward.admin change something or give out everything, and are audited. */
export const SCOPES: Readonly<Record<MethodName, Scope>> = {
  getStatus: 'tollward.read',
  listDocuments: 'tollward.read',
  listInvoices: 'tollward.read',
  listPasses: 'tollward.read',
  listPayments: 'tollward.read',
  getBooks: 'tollward.read',
  reconcileBlocks: 'tollward.read',
  listCredits: 'tollward.read',
  listConduct: 'tollward.read',
  listBlocks: 'tollward.read',
  listAlerts: 'tollward.read',
  listRegisteredClients: 'tollward.read',
  listUsers: 'tollward.read',
  listSessions: 'tollward.read',
  listGrants: 'tollward.read',
  listKeys: 'tollward.read',
  watchFlows: 'tollward.read',
  explainDecision: 'tollward.read',
  listSensors: 'tollward.read',
  listApis: 'tollward.read',
  watchApis: 'tollward.read',
  apply: 'tollward.admin',
  deleteDocument: 'tollward.admin',
  replaceClientSecret: 'tollward.admin',
  removeRegisteredClient: 'tollward.admin',
  createInitialAccessToken: 'tollward.admin',
  revokeTokens: 'tollward.admin',
  createUser: 'tollward.admin',
  setPassword: 'tollward.admin',
  setUserEnabled: 'tollward.admin',
  deleteUser: 'tollward.admin',
  endSession: 'tollward.admin',
  rotateKeys: 'tollward.admin',
  adjustCredit: 'tollward.admin',
  exportLedger: 'tollward.admin',
  importLedger: 'tollward.admin',
  overrideConduct: 'tollward.admin',
  addBlock: 'tollward.admin',
  removeBlock: 'tollward.admin',
  payRegtest: 'tollward.admin',
  mineRegtest: 'tollward.admin',
}

/** Whether a call is in the audit: it changes something or gives out everything, or would if it were allowed to. */
export function isAudited<Name extends MethodName>(method: Name, request: RequestOf<Name>): boolean {
  const isDryRun = 'dryRun' in request && request.dryRun === true
  return SCOPES[method] === 'tollward.admin' && !isDryRun
}

/** Characters of a target: it is what the caller wrote. */
const TARGET_LENGTH_MAX = 300

const TARGETS: { [Name in MethodName]?: (request: RequestOf<Name>) => string } = {
  apply: ({ fileName }) => `file ${fileName}`,
  deleteDocument: ({ kind, name }) => `${kind}/${name}`,
  replaceClientSecret: ({ clientId }) => `Client/${clientId}`,
  removeRegisteredClient: ({ clientId }) => `registered client ${clientId}`,
  createInitialAccessToken: ({ registrationsMax }) => `registrations: ${registrationsMax || 1}`,
  revokeTokens: ({ target }) => revocationTarget(target),
  createUser: ({ name }) => namedUser(name),
  setPassword: ({ user }) => namedUser(user),
  setUserEnabled: ({ user }) => namedUser(user),
  deleteUser: ({ user }) => namedUser(user),
  endSession: ({ sessionHash }) => `session ${sessionHash}`,
  rotateKeys: () => 'signing keys',
  adjustCredit: ({ clientId, amountSats }) => `credit of Client/${clientId}: ${amountSats} sats`,
  exportLedger: () => 'ledger',
  importLedger: ({ part }) => importTarget(part),
  overrideConduct: ({ clientId, score }) => `conduct of Client/${clientId}: ${score ?? 'lifted'}`,
  addBlock: blockTarget,
  removeBlock: blockTarget,
  payRegtest: () => "the regtest node's wallet",
  mineRegtest: ({ blocks }) => `${blocks} regtest blocks`,
}

/** What a request is about, as the audit names it: never a secret, and a token only by its SHA-256. */
export function targetOf<Name extends MethodName>(method: Name, request: RequestOf<Name>): string {
  return shortTarget(TARGETS[method]?.(request) ?? '')
}

/** A person in the audit: a subject means nothing to whoever cannot list users, and a name would. */
export function userTarget(subject: string): string {
  return `user ${subject}`
}

/** A person who is known by what the caller typed only. */
function namedUser(name: string): string {
  return `user named sha256:${hash('sha256', name.toLowerCase(), 'hex')}`
}

function importTarget(part: RequestOf<'importLedger'>['part']): string {
  if (part === undefined) return 'ledger'
  if (part.entries.length === 0) return `passes: ${part.passes.length}`
  return `ledger entries ${part.fromSequence} to ${part.fromSequence + BigInt(part.entries.length) - 1n}`
}

/** A caller that can't be named is not named: it may be a token. */
function blockTarget({ cidr, caller }: Pick<RequestOf<'addBlock'>, 'cidr' | 'caller'>): string {
  if (caller === undefined) return cidr
  const name = readCaller(caller)
  return name ? formatCaller(name) : 'a caller'
}

function revocationTarget(target: RequestOf<'revokeTokens'>['target']): string {
  switch (target.case) {
    case 'token':
      return `token ${hash('sha256', target.value, 'hex')}`
    case 'tokenHash':
      return `token ${target.value}`
    case 'clientId':
      return `tokens of Client/${target.value}`
    case 'grantHash':
      return `grant ${target.value}`
    case 'user':
      return `tokens of ${namedUser(target.value)}`
    default:
      return ''
  }
}

/** Cuts a target to what an audit record takes. */
export function shortTarget(target: string): string {
  return target.toWellFormed().slice(0, TARGET_LENGTH_MAX).toWellFormed()
}
