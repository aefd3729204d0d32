import { credentials } from '@grpc/grpc-js'
import { AdminService } from '@tollward/contracts/admin'
import { type GrpcClient, grpcClient } from '@tollward/contracts/grpc'
import { AppError } from '@tollward/errors'
import { readSecretFile } from '@tollward/runtime'
import { z } from 'zod'

const HTTP_TIMEOUT_MS = 5000
/** Lists of a long attack; admin-api sends no more either. */
const RESPONSE_BYTES_MAX = 64 * 1024 * 1024

export type Scope = 'tollward.read' | 'tollward.admin'

const OperatorSchema = z.object({
  /** Issuer identifier: where discovery begins. */
  issuer: z.url({ protocol: /^https?$/ }),
  /** host:port without TLS on this machine, https://host:port elsewhere. */
  adminApi: z.string().min(1),
  clientId: z.string().min(1),
  clientSecret: z.string().min(1),
})

/** The operator's credential and where it is good. */
export type Operator = z.output<typeof OperatorSchema>

/** Reads the credential. AppError `failed_precondition` says what to do if it is missing, open to others or damaged. */
export function readOperator(path: string): Operator {
  let text: string
  try {
    text = readSecretFile(path)
  } catch (error) {
    if (error instanceof AppError) throw error
    const hint = 'start the stack with "npm start", or say where it is in TOLLWARD_OPERATOR_FILE'
    throw new AppError('failed_precondition', `There is no operator credential at ${path}: ${hint}.`, { cause: error })
  }
  try {
    return OperatorSchema.parse(JSON.parse(text))
  } catch {
    // What the parser would say quotes the file, which is secret.
    throw new AppError('failed_precondition', `${path} is not JSON with issuer, adminApi, clientId and clientSecret.`)
  }
}

/** Gets an access token by the client credentials grant (RFC 6749, section 4.4), good for the scope only. */
export async function accessToken(operator: Operator, scope: Scope): Promise<string> {
  const { issuer, clientId, clientSecret } = operator
  const discovery = z.object({ issuer: z.literal(issuer), token_endpoint: z.url({ protocol: /^https?$/ }) })
  const found = await fetchJson(`${issuer.replace(/\/$/, '')}/.well-known/openid-configuration`, {}, issuer)
  const endpoint = discovery.safeParse(found.body)
  if (!endpoint.success) throw new AppError('failed_precondition', `${issuer} does not describe itself as an issuer.`)
  // RFC 6749, section 2.3.1: both parts are form-encoded before they are joined.
  const basic = Buffer.from(`${encodeURIComponent(clientId)}:${encodeURIComponent(clientSecret)}`).toString('base64')
  const { status, body } = await fetchJson(
    endpoint.data.token_endpoint,
    {
      method: 'POST',
      headers: { authorization: `Basic ${basic}` },
      body: new URLSearchParams({ grant_type: 'client_credentials', scope }),
    },
    issuer,
  )
  const token = z.object({ access_token: z.string().min(1) }).safeParse(body)
  if (token.success) return token.data.access_token
  const refusal = z.object({ error: z.string().max(100) }).safeParse(body)
  const reason = refusal.success ? refusal.data.error : `status ${status}`
  throw new AppError('unauthenticated', `auth-issuer gives this operator no token (${reason}).`)
}

/** A gRPC client of admin-api. Without TLS only to this machine: the token would travel in the clear. */
export function adminClient({ adminApi }: Operator): GrpcClient<typeof AdminService> {
  const options = { 'grpc.max_receive_message_length': RESPONSE_BYTES_MAX }
  const secure = /^https:\/\/([^/]+)\/?$/.exec(adminApi)?.[1]
  if (secure !== undefined) return grpcClient(AdminService, secure, credentials.createSsl(), options)
  if (!/^(localhost|127(\.\d{1,3}){3}|\[::1\]):\d+$/.test(adminApi)) {
    throw new AppError('failed_precondition', `adminApi is ${adminApi}, which needs TLS: write https://host:port.`)
  }
  return grpcClient(AdminService, adminApi, credentials.createInsecure(), options)
}

async function fetchJson(url: string, init: RequestInit, issuer: string): Promise<{ status: number; body: unknown }> {
  try {
    const response = await fetch(url, { ...init, redirect: 'error', signal: AbortSignal.timeout(HTTP_TIMEOUT_MS) })
    const text = await response.text()
    return { status: response.status, body: text.startsWith('{') ? JSON.parse(text) : undefined }
  } catch (error) {
    const hint = 'is the stack running? "npm start" starts it'
    throw new AppError('unavailable', `auth-issuer at ${issuer} does not answer; ${hint}.`, { cause: error })
  }
}
