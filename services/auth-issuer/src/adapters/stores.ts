import type { Bus } from '@tollward/bus'
import type { IssuerMetrics } from '../metrics.ts'
import type { Clients } from './clients.ts'
import { type Accounts, type Grants, openGrants } from './grants.ts'
import type { MasterSecret } from './master-secret.ts'
import { openRefreshTokens, type RefreshTokens } from './refresh.ts'
import { openSessions, type Sessions } from './sessions.ts'
import { openTokens, type Tokens } from './tokens.ts'

/** Everything that the OAuth server keeps, each model in its own bucket. */
export interface Stores {
  readonly bus: Bus
  readonly masterSecret: MasterSecret
  readonly clients: Clients
  readonly tokens: Tokens
  readonly refreshTokens: RefreshTokens
  readonly grants: Grants
  readonly sessions: Sessions
}

/** Opens what is kept about tokens, grants and sessions. */
export function openStores(options: {
  bus: Bus
  masterSecret: MasterSecret
  clients: Clients
  accounts: Accounts
  metrics: IssuerMetrics
}): Stores {
  const { bus, masterSecret, clients, accounts, metrics } = options
  return {
    bus,
    masterSecret,
    clients,
    tokens: openTokens(bus, metrics),
    refreshTokens: openRefreshTokens(bus, masterSecret.deriveAll('refreshSuccessors')),
    grants: openGrants({ bus, clients, accounts, metrics }),
    sessions: openSessions(bus, accounts),
  }
}
