import { type ApiPolicy, DocumentError, type PolicyExample, parseDocuments, parseExamples } from '@tollward/documents'
import { AppError } from '@tollward/errors'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { AnswerIsNo } from '../answer.ts'
import { answering, type OutputOptions, several } from '../arguments.ts'
import type { ExampleRow } from '../examples.ts'
import { json, jsonOrText, printable } from '../output.ts'
import { type Surroundings, withSession } from '../session.ts'
import { simulationRow, simulationText } from '../simulating.ts'
import { readText } from '../text-file.ts'

type Caller = NonNullable<PolicyExample['caller']>
type Claim = readonly [name: string, value: unknown]

interface SimulateOptions extends OutputOptions {
  readonly file: readonly string[]
  readonly request: { readonly method: string; readonly url: string }
  readonly header: readonly string[]
  readonly from: string
  readonly principal?: string
  readonly client?: string
  readonly subject?: string
  readonly scope: readonly string[]
  readonly audience: readonly string[]
  readonly claim: readonly Claim[]
  readonly bound?: NonNullable<Caller['boundTo']>
  readonly selfRegistered?: true
  readonly pass: readonly string[]
  readonly blocked?: 'source' | 'caller'
  readonly body?: string
}

/** What decides is loaded only by these commands: it takes a tenth of a second. */
const loadExamples = () => import('../examples.ts')
const loadDecision = () => import('@tollward/decision/policies')

/** `simulate` and `policy test`: nothing is sent, and nothing is spent. */
export function addPolicyCommands(program: Command, surroundings: Surroundings): void {
  answering(program, 'simulate', 'tell what would happen to a request, and why; nothing is sent or spent')
    .requiredOption('--request <request>', "such as 'GET https://api.example/orders/7'", requestLine)
    .option(
      '-f, --file <file>',
      'policies in the place of those in force, - for the standard input; may be given again',
      several,
      [],
    )
    .option('-H, --header <header>', "such as 'x-beta: 1'; may be given again", several, [])
    .option('--from <address>', 'where it comes from', '192.0.2.1')
    .option('--principal <name>', "of the client's certificate, such as spiffe://example.org/ns/shop/sa/web")
    .option('--client <id>', 'whose token it has; without: none')
    .option('--subject <id>', 'for whom the client acts; without: for itself')
    .option('--scope <scopes>', 'of the token, separated by commas', commaSeparated, [])
    .option('--audience <audience>', 'of the token; may be given again', several, [])
    .option('--claim <name=value>', 'of the token; the value is JSON or text; may be given again', claim, [])
    .addOption(
      new Option('--bound <key>', 'the token is bound to a key, which is proved').choices(['dpop', 'certificate']),
    )
    .option('--self-registered', 'the client registered by itself')
    .option('--pass <plan>', 'the client has a pass of this plan; may be given again', several, [])
    .addOption(new Option('--blocked [who]', 'is on the block list').choices(['source', 'caller']).preset('source'))
    .option('--body <file>', 'the body, whole')
    .action((options: SimulateOptions) => simulateOne(options, surroundings))

  const policy = program.command('policy').description('what policies decide, held to examples')
  answering(policy, 'test', 'run the examples of files (kind PolicyExamples); exit 0 only when all hold')
    .argument('<files...>')
    .action((files: string[], options: OutputOptions) => testPolicies(files, options, surroundings))
}

async function simulateOne(options: SimulateOptions, surroundings: Surroundings): Promise<void> {
  const body = options.body === undefined ? undefined : await readText(options.body)
  const { policiesOf } = await loadExamples()
  const policies = await tellingFaults(surroundings, () =>
    options.file.length > 0 ? policiesOf(options.file, surroundings.stdin) : policiesInForce(surroundings),
  )
  const { request, caller } = checked(options, body)
  const { simulate } = await loadDecision()
  const row = simulationRow(simulate(policies, request, caller))
  surroundings.out(options.output === 'json' ? json(row) : simulationText(row))
}

async function policiesInForce(surroundings: Surroundings): Promise<ApiPolicy[]> {
  return await withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
    const { documents } = await admin.listDocuments({ kind: 'ApiPolicy', name: '' }, call)
    return documents
      .flatMap(({ name, yaml }) => parseDocuments(yaml, `ApiPolicy/${name}`))
      .filter((document) => document.kind === 'ApiPolicy')
  })
}

/** The options as an example would have them, held to the same schema. */
function checked(options: SimulateOptions, body: string | undefined): Pick<PolicyExample, 'request' | 'caller'> {
  const { client, subject, scope, audience, claim, bound, selfRegistered, pass, blocked, principal, from } = options
  const ofCaller = { subject, bound, selfRegistered, ...(scope[0] && { scope }), ...(audience[0] && { audience }) }
  const needing = Object.entries({
    ...ofCaller,
    claim: claim[0],
    pass: pass[0],
    blocked: blocked === 'caller' || undefined,
  })
  const [needed] = needing.find(([, value]) => value !== undefined) ?? []
  if (client === undefined && needed !== undefined) {
    throw new AppError('invalid_argument', 'Say with --client whose token the request has.')
  }
  const caller = client !== undefined && {
    ...{ client, scopes: scope, audience, claims: Object.fromEntries(claim), selfRegistered: selfRegistered === true },
    ...{ passes: pass, isBlocked: blocked === 'caller', ...(subject && { subject }), ...(bound && { boundTo: bound }) },
  }
  const request = {
    ...{ ...options.request, from, headers: headersOf(options.header), isBlocked: blocked === 'source' },
    ...{ ...(principal && { principal }), ...(body !== undefined && { body }) },
  }
  const document = {
    ...{ apiVersion: 'tollward.dev/v1', kind: 'PolicyExamples', metadata: { name: 'simulated' } },
    spec: {
      policies: ['-'],
      examples: [{ name: '-', request, ...(caller && { caller }), expect: { outcome: 'admitted' } }],
    },
  }
  try {
    const [example] = parseExamples(JSON.stringify(document), '')[0]?.document.spec.examples ?? []
    if (example) return example
  } catch (error) {
    if (!(error instanceof DocumentError)) throw error
    const [fault] = error.faults
    const path = fault?.path.replace(/^spec\.examples\[0\]\.(request|caller)\./, '') ?? ''
    throw new AppError('invalid_argument', `The ${path} ${fault?.reason}.`, { cause: error })
  }
  throw new AppError('internal', 'A request was taken and is not there.')
}

async function testPolicies(
  files: readonly string[],
  { output }: OutputOptions,
  surroundings: Surroundings,
): Promise<void> {
  const { runExamples } = await loadExamples()
  const rows = await tellingFaults(surroundings, async () => (await Promise.all(files.map(runExamples))).flat())
  const failed = rows.filter(({ passed }) => !passed).length
  const summary = `${rows.length - failed} passed, ${failed} failed\n`
  surroundings.out(output === 'json' ? json(rows) : `${rows.map(exampleText).join('')}${summary}`)
  if (failed > 0) throw new AnswerIsNo()
}

function exampleText({ file, line, name, passed, faults }: ExampleRow): string {
  if (passed) return `ok      ${printable(name)}\n`
  const told = faults.map((fault) => `        ${printable(fault)}\n`).join('')
  return `not ok  ${printable(name)} (${file}:${line})\n${told}`
}

/** Faults of documents are told as they are: file:line: path: reason. */
async function tellingFaults<T>({ err }: Surroundings, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (!(error instanceof DocumentError)) throw error
    err(`${error.message}\n`)
    throw new AnswerIsNo()
  }
}

function requestLine(text: string): SimulateOptions['request'] {
  const [, method, url] = /^([^ ]+) +([^ ]+)$/.exec(text) ?? []
  if (method === undefined || url === undefined) {
    throw new InvalidArgumentError("It is a method and a whole URL, such as 'GET https://api.example/orders/7'.")
  }
  return { method, url }
}

function headersOf(lines: readonly string[]): Record<string, string[]> {
  const headers = new Map<string, string[]>()
  for (const line of lines) {
    const [, name, value] = /^([^:]+):[ \t]*(.*)$/.exec(line) ?? []
    if (name === undefined || value === undefined) {
      throw new AppError('invalid_argument', "A header is a name, a colon and a value, such as 'x-beta: 1'.")
    }
    headers.set(name, [...(headers.get(name) ?? []), value])
  }
  return Object.fromEntries(headers)
}

function commaSeparated(text: string, before: readonly string[]): readonly string[] {
  return [...before, ...text.split(/[,\s]+/).filter((part) => part !== '')]
}

function claim(text: string, before: readonly Claim[]): readonly Claim[] {
  const at = text.indexOf('=')
  if (at < 1) throw new InvalidArgumentError('It is a name and a value, such as tenant=acme.')
  return [...before, [text.slice(0, at), jsonOrText(text.slice(at + 1))]]
}
