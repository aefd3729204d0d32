import * as oauth from 'oauth4webapi'
import * as openid from 'openid-client'
import { Agent } from 'undici'
import type { Identification } from '../scenario/certificates.ts'
import type { Identity } from '../scenario/identity.ts'

/** What Node's own fetch calls it. */
type GlobalDispatcher = NonNullable<RequestInit['dispatcher']>

/** oauth4webapi's word for a server without TLS. */
export const INSECURE = { [oauth.allowInsecureRequests]: true }

/** openid-client, configured by discovery as its manual says. */
export async function openidClient(
  { issuerUrl }: Pick<Identity, 'issuerUrl'>,
  clientId: string,
  authentication: openid.ClientAuth,
  metadata: Partial<openid.ClientMetadata> = {},
): Promise<openid.Configuration> {
  return await openid.discovery(new URL(issuerUrl), clientId, metadata, authentication, {
    execute: [openid.allowInsecureRequests],
  })
}

/** What oauth4webapi knows of the server, by discovery. */
export async function discovered({ issuerUrl }: Pick<Identity, 'issuerUrl'>): Promise<oauth.AuthorizationServer> {
  const url = new URL(issuerUrl)
  return await oauth.processDiscoveryResponse(url, await oauth.discoveryRequest(url, INSECURE))
}

/** fetch over connections that show this certificate, if any; https is that of the identity's authority. */
export function fetchWith(
  { authority }: Pick<Identity, 'authority'>,
  identification?: Pick<Identification, 'cert' | 'key'>,
): (url: string, options?: object) => Promise<Response> {
  const dispatcher = new Agent({ connect: { ca: authority.cert, ...identification } })
  return (url, options = {}) => fetch(url, { ...options, dispatcher: dispatcher as unknown as GlobalDispatcher })
}
