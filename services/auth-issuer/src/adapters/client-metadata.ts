import type { AdapterPayload } from 'oidc-provider'
import type { RegisteredClient } from '../domain/client.ts'

/** Metadata of a client that oidc-provider does not know: our registration of it, whole. */
export const REGISTRATION = 'tollward_registration'

/** Grants as documents write them, and as clients send them. */
const GRANT_TYPES: Record<RegisteredClient['grants'][number], string> = {
  client_credentials: 'client_credentials',
  authorization_code: 'authorization_code',
  refresh_token: 'refresh_token',
  device_code: 'urn:ietf:params:oauth:grant-type:device_code',
  token_exchange: 'urn:ietf:params:oauth:grant-type:token-exchange',
}

/** A client as oidc-provider knows it. Its "secret" is the hash: the comparison hashes what the client sent. */
export function metadataOf(client: RegisteredClient): AdapterPayload {
  const code = client.grants.includes('authorization_code')
  return {
    client_id: client.clientId,
    client_name: client.displayName ?? client.clientId,
    ...(client.secretHash === '' ? {} : { client_secret: client.secretHash }),
    application_type: client.redirectUris.every(isWebUri) ? 'web' : 'native',
    grant_types: client.grants.map((grant) => GRANT_TYPES[grant]),
    response_types: code ? ['code'] : [],
    redirect_uris: [...client.redirectUris],
    post_logout_redirect_uris: [...client.postLogoutRedirectUris],
    token_endpoint_auth_method: client.authentication,
    jwks: client.jwks,
    tls_client_auth_subject_dn: client.certificateSubject,
    dpop_bound_access_tokens: client.senderConstraint === 'dpop',
    tls_client_certificate_bound_access_tokens: client.senderConstraint === 'certificate',
    require_pushed_authorization_requests: client.requirePushedAuthorization,
    id_token_signed_response_alg: client.idTokenAlgorithm,
    [REGISTRATION]: client,
  }
}

function isWebUri(uri: string): boolean {
  return uri.startsWith('https:') || uri.startsWith('http:')
}
