import { status } from '@grpc/grpc-js'
import { DocumentError, parseDocuments } from '@tollward/documents'
import { adviceFor } from './advice.ts'
import { fields } from './output.ts'
import type { DecisionRow } from './rows.ts'
import type { Session } from './session.ts'

/** A decision with what helps to understand it: the rule as it is in force now, and what to do next. */
export async function explanation(row: DecisionRow, session: Session) {
  return {
    ...row,
    ruleNow: await ruleInForce(row.rule, session),
    next: adviceFor(row.reason, row),
    tryAgain: simulation(row),
  }
}

/** The explanation in words: a line each, and a line for each stage. */
export function explanationText(told: Awaited<ReturnType<typeof explanation>>): string {
  const { stages, ruleNow, count, ...row } = told
  const width = Math.max(0, ...stages.map(({ name }) => name.length))
  const times = stages.map(({ name, micros, asked }) => {
    return `  ${name.padEnd(width)}  ${String(micros).padStart(7)} µs${asked ? ', asked somebody else' : ''}\n`
  })
  const { next, tryAgain, ...facts } = row
  const folded = count > 1 ? `this one and ${count - 1} more like it of the same source` : undefined
  return [
    fields({ ...facts, standsFor: folded, ruleNow: ruleNow && JSON.stringify(ruleNow) }),
    ...(times.length > 0 ? ['stages\n', ...times] : []),
    fields({ next, tryAgain }),
  ].join('')
}

/** The document of a rule; undefined where there is none any more. It may have been changed since the decision. */
async function ruleInForce(id: string, { admin, call }: Session): Promise<object | undefined> {
  const [policy = '', name] = id.split('/')
  if (name === undefined) return undefined
  try {
    const { documents } = await admin.listDocuments({ kind: 'ApiPolicy', name: policy }, call)
    for (const document of documents.flatMap(({ yaml }) => parseDocuments(yaml, policy))) {
      const found = document.kind === 'ApiPolicy' && document.spec.rules.find((rule) => rule.name === name)
      if (found) return found
    }
    return undefined
  } catch (error) {
    const isGone = error instanceof Error && 'code' in error && error.code === status.NOT_FOUND
    if (isGone || error instanceof DocumentError) return undefined
    throw error
  }
}

/** The command that asks what would happen now; scopes, claims and passes are for the operator to add. */
function simulation({ method, host, path, clientId, address }: DecisionRow): string | undefined {
  if (host === '' || path === '') return undefined
  const caller = clientId === '' ? '' : ` --client ${quoted(clientId)}`
  return `npx --no tollward simulate --request ${quoted(`${method} https://${host}${path}`)} --from ${address}${caller}`
}

/** As one word of a shell. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`
}
