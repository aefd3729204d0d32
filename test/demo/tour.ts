import assert from 'node:assert/strict'
import { type Answer, type Request, send } from '../scenario/http.ts'
import { tollward } from '../scenario/operator.ts'

const BODY_SHOWN_CHARACTERS = 400
const WAIT_MAX_MS = 30_000
const LOOK_AGAIN_MS = 25

/** Prints what is sent and what comes back, so that a person can follow, and fails at the first thing that is not as said. */
export class Tour {
  #step = 0

  say(text: string): void {
    process.stdout.write(`   ${text}\n`)
  }

  async step(title: string, act: () => Promise<void>): Promise<void> {
    this.#step += 1
    process.stdout.write(`\n${this.#step}. ${title}\n`)
    const startMs = performance.now()
    await act()
    this.say(`✔ ${(performance.now() - startMs).toFixed(0)} ms`)
  }

  /** One request over TCP, shown as it goes and comes. */
  readonly http = async (url: string, options: Request = {}): Promise<Answer> => {
    const { method = 'GET', headers = {}, from } = options
    this.say(`> ${method} ${url}${from === undefined ? '' : ` from ${from}`}${shownHeaders(headers)}`)
    const startMs = performance.now()
    const answer = await send(url, options)
    this.say(`< ${answer.status} in ${(performance.now() - startMs).toFixed(1)} ms${shortened(answer.body)}`)
    return answer
  }

  /** The tollward command as an operator types it; its JSON. */
  async tollward<T = unknown>(args: readonly string[], input?: string): Promise<T> {
    this.say(
      `$ npx --no tollward ${args.join(' ')}${input === undefined ? '' : ` <<YAML\n     ${input.trim().replaceAll('\n', '\n     ')}`}`,
    )
    return await tollward<T>(args, input === undefined ? {} : { input })
  }
}

/** Looks until there is something; the failure says what was waited for. */
export async function until<T>(what: string, look: () => Promise<T | undefined | false>): Promise<T> {
  const deadline = performance.now() + WAIT_MAX_MS
  for (;;) {
    const found = await look()
    if (found) return found
    assert.ok(performance.now() < deadline, `waited ${WAIT_MAX_MS / 1000} s in vain for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS))
  }
}

/** The reason code in a refusal's body (RFC 9457). */
export function problemOf({ body }: Answer): string {
  const { type } = JSON.parse(body) as { type: string }
  return type.slice(type.lastIndexOf('/') + 1)
}

function shownHeaders(headers: Readonly<Record<string, string>>): string {
  return Object.entries(headers)
    .map(([name, value]) => `\n       ${name}: ${name === 'authorization' ? `${value.slice(0, 16)}…` : value}`)
    .join('')
}

function shortened(body: string): string {
  if (body === '') return ''
  // Tokens and secrets are cut even here: people paste what they see.
  const line = body
    .replaceAll(/\s+/g, ' ')
    .replaceAll(/("(?:access_token|client_secret|registration_access_token)":".{8})[^"]+/g, '$1…')
    .trim()
  return `\n       ${line.length > BODY_SHOWN_CHARACTERS ? `${line.slice(0, BODY_SHOWN_CHARACTERS)}…` : line}`
}
