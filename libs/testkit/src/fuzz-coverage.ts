import { registerHooks, stripTypeScriptTypes } from 'node:module'
import { type Node, parse } from 'acorn'
import { full } from 'acorn-walk'

/** Of all that is instrumented in one process. */
const BLOCKS_MAX = 65_536
const COUNTS = 'tollwardBlockCounts'
/** How often something ran says more than that it ran, but not each count for itself: 1, 2, 3, to 7, 15, 31, 127, and more. */
const STEPS = [1, 2, 3, 7, 15, 31, 127] as const

const counts = new Uint32Array(BLOCKS_MAX)
let blocks = 0

/**
 * From here on, modules with such URLs count how often each of their blocks runs: functions, branches taken and not taken, turns of loops.
 * Those that were imported before do not.
 */
export function countBlocks(files: RegExp): void {
  Object.assign(globalThis, { [COUNTS]: counts })
  registerHooks({
    load: (url, context, nextLoad) => {
      const loaded = nextLoad(url, context)
      if (!files.test(url) || loaded.source === undefined || loaded.source === null) return loaded
      const source =
        typeof loaded.source === 'string' ? loaded.source : Buffer.from(loaded.source as Uint8Array).toString()
      return { format: 'module', shortCircuit: true, source: instrumented(stripTypeScriptTypes(source)) }
    },
  })
}

/** What runs, and what of it never ran so often before. */
export class Coverage {
  readonly #seen = new Uint8Array(BLOCKS_MAX)

  /** Forgets what has run until now. */
  begin(): void {
    counts.fill(0, 0, blocks)
  }

  /** Blocks that ran, each with the step of its count. */
  all(): number[] {
    const all: number[] = []
    for (let block = 0; block < blocks; block++) {
      const count = counts[block] ?? 0
      if (count > 0) all.push(block * 8 + stepOf(count))
    }
    return all
  }

  /** Those of them that ran as often as never before. */
  found(): number[] {
    return this.all().filter((one) => ((this.#seen[one >> 3] ?? 0) & (1 << (one & 7))) === 0)
  }

  /** Whether all of these ran again. */
  has(found: readonly number[]): boolean {
    return found.every((one) => {
      const count = counts[one >> 3] ?? 0
      return count > 0 && stepOf(count) === (one & 7)
    })
  }

  keep(found: readonly number[]): void {
    for (const one of found) this.#seen[one >> 3] = (this.#seen[one >> 3] ?? 0) | (1 << (one & 7))
  }

  /** Blocks that have run, of all. */
  get reached(): number {
    return this.#seen.reduce((sum, steps) => sum + Number(steps > 0), 0)
  }

  /** The same, each counted once for each step. */
  get steps(): number {
    let steps = 0
    for (const seen of this.#seen) for (let bits = seen; bits > 0; bits >>= 1) steps += bits & 1
    return steps
  }

  get blocks(): number {
    return blocks
  }
}

function stepOf(count: number): number {
  const step = STEPS.findIndex((most) => count <= most)
  return step < 0 ? STEPS.length : step
}

/** JavaScript that counts its blocks, line by line what it was. */
export function instrumented(source: string): string {
  const tree = parse(source, { ecmaVersion: 'latest', sourceType: 'module' })
  const inserted: Insertion[] = []
  const count = () => {
    if (blocks >= BLOCKS_MAX) throw new Error(`more than ${BLOCKS_MAX} blocks are instrumented`)
    return `${COUNTS}[${blocks++}]++`
  }
  const inBlock = (node: Parts) => {
    if (node.type === 'BlockStatement') inserted.push({ at: node.start + 1, opens: true, text: `${count()};` })
    else around(node, `{${count()};`, '}')
  }
  const inExpression = (node: Node) => around(node, `(${count()},`, ')')
  const around = (node: Node, before: string, after: string) => {
    inserted.push({ at: node.start, opens: true, text: before })
    inserted.push({ at: node.end, opens: false, text: after })
  }
  full(tree, (each) => {
    const node = each as Parts
    const { body, consequent, alternate } = node
    switch (node.type) {
      case 'FunctionDeclaration':
      case 'FunctionExpression':
      case 'ArrowFunctionExpression':
        if (isNode(body)) node.expression ? inExpression(body) : inBlock(body)
        break
      case 'CatchClause':
      case 'ForStatement':
      case 'ForOfStatement':
      case 'ForInStatement':
      case 'WhileStatement':
      case 'DoWhileStatement':
        if (isNode(body)) inBlock(body)
        break
      case 'IfStatement':
        if (!isNode(consequent)) break
        inBlock(consequent)
        if (alternate) inBlock(alternate)
        else inserted.push({ at: consequent.end, opens: false, text: ` else {${count()}}` })
        break
      case 'SwitchCase':
        if (Array.isArray(consequent) && consequent[0])
          inserted.push({ at: consequent[0].start, opens: true, text: `${count()};` })
        break
      case 'ConditionalExpression':
        for (const branch of [consequent, alternate]) if (isNode(branch)) inExpression(branch)
        break
      case 'LogicalExpression':
        if (node.right) inExpression(node.right)
        break
    }
  })
  return spliced(source, inserted)
}

interface Insertion {
  readonly at: number
  /** Before what begins there; otherwise behind what ends there. */
  readonly opens: boolean
  readonly text: string
}

/** Of those at one place, the inner ones come first in the list. */
function spliced(source: string, insertions: readonly Insertion[]): string {
  const parts = insertions.map((insertion, index) => ({ ...insertion, rank: insertion.opens ? -index : index }))
  parts.sort((one, other) => one.at - other.at || Number(one.opens) - Number(other.opens) || one.rank - other.rank)
  let text = ''
  let from = 0
  for (const { at, text: more } of parts) {
    text += source.slice(from, at) + more
    from = at
  }
  return text + source.slice(from)
}

/** What the kinds of nodes above have. */
interface Parts extends Node {
  readonly body?: Parts | readonly Parts[]
  readonly consequent?: Parts | readonly Parts[]
  readonly alternate?: Parts | null
  readonly right?: Parts
  readonly expression?: boolean
}

function isNode(part: Parts | readonly Parts[] | null | undefined): part is Parts {
  return part !== null && part !== undefined && !Array.isArray(part)
}
