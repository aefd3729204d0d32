import { dirname, resolve } from 'node:path'
import type { Readable } from 'node:stream'
import { text as textOf } from 'node:stream/consumers'
import { REASONS, type Simulation, simulate } from '@tollward/decision/policies'
import {
  type ApiPolicy,
  DocumentError,
  type DocumentFault,
  type DocumentSource,
  type PolicyExample,
  type PolicyExamples,
  parseDocuments,
  parseExamples,
} from '@tollward/documents'
import { AppError } from '@tollward/errors'
import { readText } from './text-file.ts'

/** What came of one example. */
export interface ExampleRow {
  readonly file: string
  readonly line: number
  readonly name: string
  readonly passed: boolean
  /** What is not as expected, a sentence each. */
  readonly faults: readonly string[]
}

/** The policies of files, of which - is `stdin`; other documents in them do not matter here. DocumentError if one of them is wrong. */
export async function policiesOf(files: readonly string[], stdin?: Readable): Promise<ApiPolicy[]> {
  const policies = new Map<string, ApiPolicy>()
  for (const file of files) {
    const [text, name] = file === '-' && stdin ? [await textOf(stdin), 'stdin'] : [await readText(file), file]
    for (const document of parseDocuments(text, name)) {
      if (document.kind !== 'ApiPolicy') continue
      const { name } = document.metadata
      if (policies.has(name)) {
        throw new AppError('invalid_argument', `${file} has ApiPolicy/${name}, which an earlier file has already.`)
      }
      policies.set(name, document)
    }
  }
  return [...policies.values()]
}

/** Runs the examples of one file against the policies that it names, which stand relative to it. */
export async function runExamples(file: string): Promise<ExampleRow[]> {
  const rows: ExampleRow[] = []
  for (const source of parseExamples(await readText(file), file)) {
    const { policies: files, examples } = source.document.spec
    checkNames(source, 'reason', (reason) => Object.hasOwn(REASONS, reason))
    const policies = await policiesOf(files.map((name) => resolve(dirname(file), name)))
    const rules = new Set(
      policies.flatMap(({ metadata, spec }) => spec.rules.map(({ name }) => `${metadata.name}/${name}`)),
    )
    checkNames(source, 'rule', (rule) => rule === 'none' || rules.has(rule))
    for (const [index, example] of examples.entries()) {
      const faults = exampleFaults(example, simulate(policies, example.request, example.caller))
      const { line } = source.fault(['spec', 'examples', index, 'name'], '')
      rows.push({ file, line, name: example.name, passed: faults.length === 0, faults })
    }
  }
  return rows
}

/** An expected name that does not exist is a mistake of the example, not of the policy. */
function checkNames(
  source: DocumentSource<PolicyExamples>,
  field: 'reason' | 'rule',
  exists: (name: string) => boolean,
): void {
  const faults: DocumentFault[] = []
  for (const [index, { expect }] of source.document.spec.examples.entries()) {
    const name = expect[field]
    if (name === undefined || exists(name)) continue
    const reason = field === 'rule' ? 'is no policy/rule of these policies, nor none' : 'is no reason of a refusal'
    faults.push(source.fault(['spec', 'examples', index, 'expect', field], reason))
  }
  if (faults.length > 0) throw new DocumentError(faults)
}

/** What of a simulation is not as its example expects. */
export function exampleFaults({ expect, request }: PolicyExample, simulation: Simulation): string[] {
  const { decision, outcome, reason, rule = 'none' } = simulation
  const faults: string[] = []
  const compare = (what: string, expected: unknown, got: unknown) => {
    if (expected !== undefined && expected !== got) faults.push(`${what} is ${shown(got)}, not ${shown(expected)}`)
  }
  compare('outcome', expect.outcome, outcome)
  compare('status', expect.status, decision.admitted ? undefined : decision.status)
  compare('reason', expect.reason, reason)
  compare('rule', expect.rule, rule)
  compare('target', expect.target, decision.admitted ? decision.target.path + decision.target.query : undefined)
  const upstream = decision.admitted ? upstreamHeaders(request, decision.upstream) : new Map<string, string>()
  compareHeaders('upstream header', expect.upstreamHeaders, upstream)
  compareHeaders('response header', expect.responseHeaders, new Map(decision.headers))
  if (faults.length > 0 && simulation.detail !== undefined) faults.push(`the refusal says: ${simulation.detail}`)
  return faults

  function compareHeaders(
    what: string,
    expected: Readonly<Record<string, string | null>> = {},
    got: ReadonlyMap<string, string>,
  ) {
    for (const [name, value] of Object.entries(expected)) {
      compare(`${what} ${name}`, value ?? 'absent', got.get(name.toLowerCase()) ?? 'absent')
    }
  }
}

/** All that the API gets: what the client sent, less what is removed, and what is set. */
function upstreamHeaders(
  { headers }: PolicyExample['request'],
  { set, remove }: { readonly set: readonly (readonly [string, string])[]; readonly remove: readonly string[] },
): Map<string, string> {
  const sent = Object.entries(headers).map(
    ([name, values]) => [name.toLowerCase(), [values].flat().join(', ')] as const,
  )
  const kept = sent.filter(([name]) => !remove.includes(name))
  return new Map([...kept, ...set.map(([name, value]) => [name.toLowerCase(), value] as const)])
}

function shown(value: unknown): string {
  return value === undefined ? 'none' : String(value)
}
