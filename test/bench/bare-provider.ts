import process from 'node:process'
import { Provider } from 'oidc-provider'

/*
 * What the benchmarks of tokens and introspection stand beside: oidc-provider as its manual starts it, with its memory adapter,
 * opaque tokens and one client. Run as a process of its own; its arguments are the port, a client_id and a client_secret.
 */

const [, , port = '', clientId = '', clientSecret = ''] = process.argv

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      client_id: clientId,
      client_secret: clientSecret,
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
      scope: 'orders',
    },
  ],
  scopes: ['orders'],
  ttl: { ClientCredentials: 3600 },
  features: {
    clientCredentials: { enabled: true },
    introspection: { enabled: true, allowedPolicy: (_ctx, client, token) => token.clientId === client.clientId },
    revocation: { enabled: true, allowedPolicy: (_ctx, client, token) => token.clientId === client.clientId },
    devInteractions: { enabled: false },
  },
})
provider.listen(Number(port), '127.0.0.1', () => process.stdout.write('listening\n'))
