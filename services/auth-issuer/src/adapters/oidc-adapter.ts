import { randomBytes } from 'node:crypto'
import { AppError } from '@tollward/errors'
import { type Adapter, errors, type KoaContextWithOIDC, Provider } from 'oidc-provider'
import { grantId } from '../domain/grant.ts'
import { tokenHash } from '../domain/token.ts'
import type { Grants } from './grants.ts'
import type { Payload } from './records.ts'
import type { RefreshTokens } from './refresh.ts'
import type { Sessions } from './sessions.ts'
import type { Stores } from './stores.ts'
import type { Tokens } from './tokens.ts'
import { openValues, type Values } from './values.ts'

/** 256 bits, as all of our tokens have: 43 digits of base64url. */
const ID_BYTES = 32

/** Values of refresh tokens that requests under way are about to hand out. */
const successors = new WeakMap<KoaContextWithOIDC, string>()

/** oidc-provider's storage: one adapter a model. */
export function oidcAdapters(stores: Stores): (model: string) => Adapter {
  const { tokens, refreshTokens, grants, sessions, bus, masterSecret } = stores
  const sealedUnder = masterSecret.deriveAll('records')
  return (model) => {
    switch (model) {
      case 'AccessToken':
      case 'ClientCredentials':
        return tokenAdapter(model, tokens)
      case 'RefreshToken':
        return refreshTokenAdapter(refreshTokens)
      case 'Grant':
        return grantAdapter(grants)
      case 'Session':
        return sessionAdapter(sessions)
      case 'Interaction':
      case 'DeviceCode':
        return valueAdapter(model, openValues(bus, model, sealedUnder), grants)
      default:
        return valueAdapter(model, openValues(bus, model), grants)
    }
  }
}

/** Ids that say more than oidc-provider's own: which token one replaces, whose a grant is, under what a person signed in. */
export function installIds(provider: Provider): void {
  const { Grant, RefreshToken, Session } = provider
  Object.assign(RefreshToken.prototype, {
    generateTokenId: () => (Provider.ctx && successors.get(Provider.ctx)) ?? randomId(),
  })
  Object.assign(Grant.prototype, {
    generateTokenId(this: { accountId?: string; clientId?: string }) {
      return grantId(this.accountId ?? '', this.clientId ?? '', randomId())
    },
  })
  // The account's generation travels with the session.
  const members = [...Session.IN_PAYLOAD, 'generation']
  Object.defineProperty(Session, 'IN_PAYLOAD', { get: () => members })
}

function randomId(): string {
  return randomBytes(ID_BYTES).toString('base64url')
}

/** What no enabled feature asks for. */
function never(): never {
  throw new AppError('internal', 'Something went wrong on our side; try again later.', {
    cause: new Error('no enabled feature asks this of a model'),
  })
}

const unused: Adapter = {
  upsert: async () => never(),
  find: async () => never(),
  findByUid: async () => never(),
  findByUserCode: async () => never(),
  consume: async () => never(),
  destroy: async () => never(),
  // Whatever was issued under a grant is good only while the grant is: ending the grant ends it.
  revokeByGrantId: async () => {},
}

function withId(id: string, payload: Payload | undefined) {
  return payload && { ...payload, jti: id }
}

function tokenAdapter(model: 'AccessToken' | 'ClientCredentials', tokens: Tokens): Adapter {
  return {
    ...unused,
    upsert: (id, payload) => tokens.issue(model, id, payload),
    find: async (id) => withId(id, await tokens.find(model, id)),
    destroy: async (id) => {
      await tokens.revoke(tokenHash(id), 'revoked by its client')
    },
  }
}

function refreshTokenAdapter(refreshTokens: RefreshTokens): Adapter {
  return {
    ...unused,
    upsert: (id, payload) => refreshTokens.save(id, payload, Provider.ctx?.oidc.entities.RotatedRefreshToken?.jti),
    find: async (id) => withId(id, await refreshTokens.find(id)),
    consume: async (id) => {
      const successor = await refreshTokens.consume(id)
      if (Provider.ctx) successors.set(Provider.ctx, successor)
    },
    destroy: (id) => refreshTokens.remove(id),
  }
}

function grantAdapter(grants: Grants): Adapter {
  return {
    ...unused,
    upsert: (id, payload, lifetimeSeconds) => grants.save(id, payload, lifetimeSeconds),
    find: async (id) => withId(id, await grants.find(id)),
    destroy: async (id) => {
      await grants.revoke(id, whyEnded(Provider.ctx))
    },
  }
}

/** Why oidc-provider ends a grant: it does so where its person signs out, where its client asks, and where something is used twice. */
function whyEnded(ctx: KoaContextWithOIDC | undefined): { reason: string; reusedToken?: string } {
  const { route, entities, params } = ctx?.oidc ?? {}
  if (route === 'revocation') return { reason: 'revoked by its client' }
  if (route !== 'token') return { reason: 'signed out' }
  if (params?.grant_type !== 'refresh_token') return { reason: `${params?.grant_type} was used twice` }
  const { RefreshToken: reused } = entities ?? {}
  return { reason: 'refresh token was used twice', ...(reused ? { reusedToken: tokenHash(reused.jti) } : {}) }
}

function sessionAdapter(sessions: Sessions): Adapter {
  return {
    ...unused,
    upsert: (id, payload, lifetimeSeconds) => {
      const generation = Provider.ctx?.oidc.result?.login?.generation
      return sessions.save(id, payload, lifetimeSeconds, typeof generation === 'string' ? generation : undefined)
    },
    find: async (id) => withId(id, await sessions.find(id)),
    // The id is the cookie and is not kept; whoever looks a session up by its uid has no use for it.
    findByUid: (uid) => sessions.findByUid(uid),
    destroy: (id) => sessions.remove(id),
  }
}

function valueAdapter(model: string, values: Values, grants: Grants): Adapter {
  return {
    ...unused,
    upsert: (id, payload, lifetimeSeconds) => values.save(id, payload, lifetimeSeconds),
    find: async (id) => withId(id, await values.find(id)),
    findByUserCode: async (code) => {
      const found = await values.findByUserCode(code)
      return found && withId(found.id, found.payload)
    },
    consume: async (id) => {
      if (await values.consume(id)) return
      if (model === 'PushedAuthorizationRequest') throw new errors.InvalidRequestUri(`${model} was used before`)
      // Whoever comes second at the same moment is treated like whoever comes second later.
      const grant = (await values.find(id))?.grantId
      if (grant !== undefined) await grants.revoke(grant, whyEnded(Provider.ctx))
      throw new errors.InvalidGrant(`${model} was used before`)
    },
    destroy: (id) => values.remove(id),
  }
}
