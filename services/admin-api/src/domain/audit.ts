import { hash } from 'node:crypto'
import type { MessageShape } from '@bufbuild/protobuf'
import type { AdminService } from '@tollward/contracts/admin'
import type { Scope } from './access.ts'

type Methods = (typeof AdminService)['method']
export type MethodName = keyof Methods
export type RequestOf<Name extends MethodName> = MessageShape<Methods[Name]['input']>

/** What each method needs. Those that need tollward.admin change something, and are audited. */
export const SCOPES: Readonly<Record<MethodName, Scope>> = {
  getStatus: 'tollward.read',
  listDocuments: 'tollward.read',
  listInvoices: 'tollward.read',
  listPasses: 'tollward.read',
  listBlocks: 'tollward.read',
  listAlerts: 'tollward.read',
  watchFlows: 'tollward.read',
  explainDecision: 'tollward.read',
  apply: 'tollward.admin',
  deleteDocument: 'tollward.admin',
  replaceClientSecret: 'tollward.admin',
  revokeTokens: 'tollward.admin',
  addBlock: 'tollward.admin',
  removeBlock: 'tollward.admin',
  payRegtest: 'tollward.admin',
  mineRegtest: 'tollward.admin',
}

/** Characters of a target: it is what the caller wrote. */
const TARGET_LENGTH_MAX = 300

const TARGETS: { [Name in MethodName]?: (request: RequestOf<Name>) => string } = {
  apply: ({ fileName }) => `file ${fileName}`,
  deleteDocument: ({ kind, name }) => `${kind}/${name}`,
  replaceClientSecret: ({ clientId }) => `Client/${clientId}`,
  revokeTokens: ({ target }) => {
    if (target.case === 'clientId') return `tokens of Client/${target.value}`
    if (target.case === undefined) return ''
    return `token ${target.case === 'token' ? hash('sha256', target.value, 'hex') : target.value}`
  },
  addBlock: ({ cidr }) => cidr,
  removeBlock: ({ cidr }) => cidr,
  payRegtest: () => "the regtest node's wallet",
  mineRegtest: ({ blocks }) => `${blocks} regtest blocks`,
}

/** What a request is about, as the audit names it: never a secret, and a token only by its SHA-256. */
export function targetOf<Name extends MethodName>(method: Name, request: RequestOf<Name>): string {
  return shortTarget(TARGETS[method]?.(request) ?? '')
}

/** Cuts a target to what an audit record takes. */
export function shortTarget(target: string): string {
  return target.toWellFormed().slice(0, TARGET_LENGTH_MAX).toWellFormed()
}
