import { type Agent, request as httpRequest, type IncomingHttpHeaders } from 'node:http'

const REQUEST_TIMEOUT_MS = 10_000

export interface Answer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: string
}

export interface Request {
  readonly method?: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: string
  /** Address of this machine to send from. */
  readonly from?: string
  /** Keeps connections; without it the request gets one of its own. */
  readonly agent?: Agent
  readonly timeoutMs?: number
}

/** One request. Rejects if there is no answer. */
export function send(url: string, options: Request = {}): Promise<Answer> {
  const { method = 'GET', headers = {}, body, from, agent = false, timeoutMs = REQUEST_TIMEOUT_MS } = options
  return new Promise((resolve, reject) => {
    const outgoing = httpRequest(
      url,
      { method, headers, agent, timeout: timeoutMs, ...(from === undefined ? {} : { localAddress: from }) },
      (incoming) => {
        const chunks: Buffer[] = []
        incoming.on('data', (chunk: Buffer) => chunks.push(chunk))
        incoming.on('error', reject)
        incoming.on('end', () =>
          resolve({
            status: incoming.statusCode ?? 0,
            headers: incoming.headers,
            body: Buffer.concat(chunks).toString(),
          }),
        )
      },
    )
    outgoing.on('timeout', () => outgoing.destroy(new Error(`no answer within ${timeoutMs} ms`)))
    outgoing.on('error', reject)
    outgoing.end(body)
  })
}
