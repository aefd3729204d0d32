import type { X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { TLSSocket } from 'node:tls'
import { AppError } from '@tollward/errors'
import { readSecretFile, variableOf } from '@tollward/runtime'
import type { KoaContextWithOIDC } from 'oidc-provider'
import type { Config } from '../config.ts'
import { isSubject } from '../domain/distinguished-name.ts'
import type { ProviderPart } from './compose.ts'
import type { TlsFiles } from './http.ts'

/** What is served over the listener for certificates: the endpoints that clients call themselves. People's browsers stay away. */
const SERVED = new Set(['/token', '/token/revocation', '/request', '/device/auth', '/me'])

/** Members of the discovery document that have an alias there (RFC 8705, section 5). */
const ALIASED = [
  'token_endpoint',
  'revocation_endpoint',
  'pushed_authorization_request_endpoint',
  'device_authorization_endpoint',
  'userinfo_endpoint',
]

/** The listener for clients with certificates, as it is configured. */
export interface Mtls extends TlsFiles {
  readonly url: string
}

/** Reads what the listener needs. Undefined: it is off. AppError `failed_precondition`: only a part of it is configured, or readable. */
export function readMtls(config: Pick<Config, 'mtlsUrl' | (typeof FILES)[number]>): Mtls | undefined {
  const { mtlsUrl, mtlsCertFile, mtlsKeyFile, mtlsClientCaFile } = config
  if (mtlsUrl && mtlsCertFile && mtlsKeyFile && mtlsClientCaFile) {
    const [cert, clientCa] = [readFileSync(mtlsCertFile, 'utf8'), readFileSync(mtlsClientCaFile, 'utf8')]
    return { url: mtlsUrl, cert, key: readSecretFile(mtlsKeyFile), clientCa }
  }
  const missing = (['mtlsUrl', ...FILES] as const).filter((key) => config[key] === undefined).map(variableOf)
  if (missing.length === FILES.length + 1) return undefined
  throw new AppError(
    'failed_precondition',
    `For clients with certificates there is still missing: ${missing.join(', ')}`,
  )
}

const FILES = ['mtlsCertFile', 'mtlsKeyFile', 'mtlsClientCaFile'] as const

/** Clients that authenticate by a certificate, and tokens that are bound to one (RFC 8705). */
export function mtlsPart(mtls: Pick<Mtls, 'url'> | undefined): ProviderPart {
  return {
    configuration: {
      features: {
        mTLS: {
          enabled: true,
          tlsClientAuth: true,
          selfSignedTlsClientAuth: true,
          certificateBoundAccessTokens: true,
          getCertificate: certificateOf,
          certificateAuthorized: (ctx) => ctx.req.socket instanceof TLSSocket && ctx.req.socket.authorized,
          certificateSubjectMatches: (ctx, property, expected) =>
            property === 'tls_client_auth_subject_dn' && isSubject(certificateOf(ctx)?.subject, expected),
        },
      },
    },
    install: (provider) => {
      const host = mtls && new URL(mtls.url).host
      provider.use(async (ctx, next) => {
        if (ctx.req.socket instanceof TLSSocket) {
          if (!SERVED.has(ctx.path)) return
          ctx.req.headers['x-forwarded-host'] = host
          ctx.req.headers['x-forwarded-proto'] = 'https'
        }
        await next()
        if (ctx.path.startsWith('/.well-known/') && ctx.status === 200) advertise(ctx.body, mtls?.url)
      })
    },
  }
}

/** The certificate that the client of this connection has shown, as long as it is in its time. Its key was proven by TLS. */
function certificateOf({ req: { socket } }: KoaContextWithOIDC): X509Certificate | undefined {
  const certificate = socket instanceof TLSSocket ? socket.getPeerX509Certificate() : undefined
  if (!certificate) return undefined
  const now = new Date()
  return certificate.validFromDate <= now && now < certificate.validToDate ? certificate : undefined
}

function advertise(document: unknown, url: string | undefined): void {
  if (typeof document !== 'object' || document === null) return
  const members = document as Record<string, unknown>
  if (url === undefined) {
    const methods = members.token_endpoint_auth_methods_supported
    if (Array.isArray(methods)) {
      const offered = methods.filter((method: string) => !method.includes('tls_client_auth'))
      members.token_endpoint_auth_methods_supported = offered
    }
    delete members.tls_client_certificate_bound_access_tokens
    return
  }
  members.mtls_endpoint_aliases = Object.fromEntries(
    ALIASED.flatMap((name) => {
      const endpoint = members[name]
      return typeof endpoint === 'string' ? [[name, new URL(new URL(endpoint).pathname, url).href]] : []
    }),
  )
}
