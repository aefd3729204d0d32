import { errors, type Provider } from 'oidc-provider'
import type { RegisteredClient } from '../domain/client.ts'
import { exchanged } from '../domain/token-exchange.ts'
import type { IssuerMetrics } from '../metrics.ts'
import { REGISTRATION } from './client-metadata.ts'
import type { ProviderPart } from './compose.ts'
import { type ExchangeOptions, openExchange } from './exchange.ts'

const TOKEN_EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange'

/** Identifiers of RFC 8693, section 3. What is issued is an access token, and a JWT. */
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token'
const JWT = 'urn:ietf:params:oauth:token-type:jwt'

const PARAMETERS = [
  'subject_token',
  'subject_token_type',
  'requested_token_type',
  'actor_token',
  'actor_token_type',
  'audience',
  'resource',
  'scope',
]

/** RFC 8693, section 2.1: these may be given several times. */
const REPEATABLE = ['audience', 'resource']

type Parameters = { readonly [name in string]?: string | string[] }

/**
 * Token exchange (RFC 8693) for services behind the gateway that call another in the name of their caller: an opaque access
 * token for the internal one, with the service as `act`.
 */
export function tokenExchangePart(options: ExchangeOptions & { metrics: IssuerMetrics }): ProviderPart {
  const exchange = openExchange(options)
  return {
    install: (provider: Provider) =>
      provider.registerGrantType<Parameters>(
        TOKEN_EXCHANGE,
        async (ctx) => {
          const { params } = ctx.oidc
          const issuedTokenType = assertSupported(params)
          const live = await exchange.lookUp(textOf(params.subject_token))
          // RFC 8693, section 2.2.2: whatever is wrong with the subject token.
          if (!live) throw new errors.InvalidRequest('subject_token is unknown, expired or revoked')
          const client = ctx.oidc.client[REGISTRATION] as RegisteredClient
          const outcome = exchanged(live.worth, client, {
            audiences: listOf(params.audience),
            resources: listOf(params.resource),
            scopes: textOf(params.scope)
              .split(' ')
              .filter((scope) => scope !== ''),
          })
          if ('error' in outcome) throw refusal(outcome)
          const { token, claims } = await exchange.mint(live.hash, outcome.worth, client.clientId)
          options.metrics.exchanged.inc()
          ctx.body = {
            access_token: token,
            issued_token_type: issuedTokenType,
            // A copy of what the subject token is bound to.
            token_type: claims.cnf && 'jkt' in claims.cnf ? 'DPoP' : 'Bearer',
            expires_in: claims.exp - claims.iat,
            ...(claims.scope === '' ? {} : { scope: claims.scope }),
          }
        },
        PARAMETERS,
        REPEATABLE,
      ),
  }
}

/** Refuses what is not offered. Returns the type of the token that will be issued. */
function assertSupported(params: Parameters): string {
  for (const name of ['subject_token', 'subject_token_type'] as const) {
    if (textOf(params[name]) === '') throw new errors.InvalidRequest(`missing required parameter(s) '${name}'`)
  }
  if (params.subject_token_type !== ACCESS_TOKEN) {
    throw new errors.InvalidRequest(`subject_token_type has to be ${ACCESS_TOKEN}`)
  }
  if (params.actor_token !== undefined || params.actor_token_type !== undefined) {
    throw new errors.InvalidRequest('actor_token is not taken: the actor is the client that exchanges')
  }
  const requested = textOf(params.requested_token_type) || ACCESS_TOKEN
  if (requested !== ACCESS_TOKEN && requested !== JWT) {
    throw new errors.InvalidRequest(`requested_token_type has to be ${ACCESS_TOKEN} or ${JWT}`)
  }
  return requested
}

function refusal({ error, description }: { error: 'invalid_target' | 'invalid_scope'; description: string }) {
  if (error === 'invalid_target') return new errors.InvalidTarget(description)
  return new errors.CustomOIDCProviderError(error, description)
}

function textOf(value: string | string[] | undefined): string {
  return typeof value === 'string' ? value : ''
}

function listOf(value: string | string[] | undefined): string[] {
  return value === undefined ? [] : [value].flat()
}
