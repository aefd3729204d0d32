import type { ApiPolicy } from '@tollward/documents'

type RuleMatch = ApiPolicy['spec']['rules'][number]['match']

/** One segment of a pattern, from the most specific kind to the least. */
type Part =
  | { readonly kind: 'literal'; readonly text: string }
  | { readonly kind: 'glob'; readonly glob: SegmentGlob }
  | { readonly kind: 'any' }

/** Text with * for any characters, as the pieces between the asterisks. */
interface SegmentGlob {
  readonly text: string
  readonly pieces: readonly string[]
  readonly literalCharacters: number
}

/** Which paths a rule is about. */
export interface PathPattern {
  /** Segments from the left up to the first **, or all of them. */
  readonly head: readonly Part[]
  /** The path ends with the head, goes on anyhow, or goes on as `gaps` say. */
  readonly end: 'here' | 'anywhere' | 'gaps'
  /** What comes after each **, in order; the last of them ends the path unless `isOpen`. */
  readonly gaps: readonly (readonly Part[])[]
  readonly isOpen: boolean
  /** Compares by code unit: what sorts first is more specific. */
  readonly rank: string
}

const GLOBSTAR = '**'

/** Reads path, prefix or glob of a rule. `/a/**` is the prefix /a, and * as a whole segment is a {parameter}. */
export function compilePath({ path, prefix, glob }: RuleMatch): PathPattern {
  if (path !== undefined) return pattern([splitPath(path).map(templatePart)], false)
  if (glob === undefined) return pattern([(prefix === '/' ? [] : splitPath(prefix ?? '/')).map(templatePart)], true)
  const runs: string[][] = [[]]
  let isOpen = false
  for (const segment of splitPath(glob)) {
    if (segment !== GLOBSTAR) runs.at(-1)?.push(segment)
    // Two ** in a row stand for what one stands for.
    else if (!isOpen) runs.push([])
    isOpen = segment === GLOBSTAR
  }
  if (isOpen) runs.pop()
  return pattern(
    runs.map((run) => run.map(globPart)),
    isOpen,
  )
}

function pattern(runs: readonly (readonly Part[])[], isOpen: boolean): PathPattern {
  const [head = [], ...gaps] = runs
  const end = gaps.length > 0 ? 'gaps' : isOpen ? 'anywhere' : 'here'
  const rank = `${runs.map((run) => run.map(partRank).join('')).join(RANK.gap)}${isOpen ? RANK.open : RANK.end}`
  return { head, end, gaps, isOpen, rank }
}

/** "/" is one empty segment, as a request's path is. */
function splitPath(path: string): string[] {
  return path.slice(1).split('/')
}

function templatePart(segment: string): Part {
  return segment.startsWith('{') ? { kind: 'any' } : { kind: 'literal', text: segment }
}

function globPart(segment: string): Part {
  if (!segment.includes('*')) return { kind: 'literal', text: segment }
  const pieces = segment.split(/\*+/)
  if (pieces.every((piece) => piece === '')) return { kind: 'any' }
  return { kind: 'glob', glob: { text: segment, pieces, literalCharacters: pieces.join('').length } }
}

const RANK = { literal: '0', glob: '1', any: '2', end: '3', gap: '4', open: '5' } as const
const LITERALS_MAX = 1024

/** Of two globs the one with more literal characters is more specific. */
function partRank(part: Part): string {
  if (part.kind !== 'glob') return RANK[part.kind]
  return RANK.glob + String.fromCharCode(LITERALS_MAX + 1 - part.glob.literalCharacters)
}

/** Rules by the segments that their paths begin with. */
export interface PathNode<R> {
  readonly literals: Map<string, PathNode<R>>
  readonly globs: { readonly glob: SegmentGlob; readonly node: PathNode<R> }[]
  any: PathNode<R> | undefined
  /** Of patterns that end here. */
  readonly here: R[]
  /** Of patterns that go on anyhow. */
  readonly anywhere: R[]
  /** Of patterns with ** between other segments. */
  readonly gapped: { readonly pattern: PathPattern; readonly rule: R }[]
}

/** A tree without rules. */
export function emptyNode<R>(): PathNode<R> {
  return { literals: new Map(), globs: [], any: undefined, here: [], anywhere: [], gapped: [] }
}

/** Puts a rule into the tree. Rules of one place stay in the order in which they are put there. */
export function plant<R>(root: PathNode<R>, pattern: PathPattern, rule: R): void {
  let node = root
  for (const part of pattern.head) node = childOf(node, part)
  if (pattern.end === 'gaps') node.gapped.push({ pattern, rule })
  else node[pattern.end].push(rule)
}

function childOf<R>(node: PathNode<R>, part: Part): PathNode<R> {
  switch (part.kind) {
    case 'literal': {
      const child = node.literals.get(part.text) ?? emptyNode<R>()
      node.literals.set(part.text, child)
      return child
    }
    case 'glob': {
      const known = node.globs.find(({ glob }) => glob.text === part.glob.text)
      if (known) return known.node
      const child = emptyNode<R>()
      node.globs.push({ glob: part.glob, node: child })
      return child
    }
    case 'any':
      node.any ??= emptyNode<R>()
      return node.any
  }
}

/**
 * Collects the rules whose path matches, as lists that are each in order. Takes each branch of the tree once: the time is in
 * proportion to the segments and to the rules below what they have in common.
 */
export function collect<R>(node: PathNode<R>, segments: readonly string[], depth: number, found: R[][]): void {
  const segment = segments[depth]
  if (segment !== undefined) {
    const literal = node.literals.get(segment)
    if (literal) collect(literal, segments, depth + 1, found)
    if (segment !== '') {
      for (const { glob, node: child } of node.globs) {
        if (globMatches(glob, segment)) collect(child, segments, depth + 1, found)
      }
      if (node.any) collect(node.any, segments, depth + 1, found)
    }
  } else if (node.here.length > 0) {
    found.push(node.here)
  }
  for (const { pattern, rule } of node.gapped) if (gapsMatch(pattern, segments, depth)) found.push([rule])
  if (node.anywhere.length > 0) found.push(node.anywhere)
}

/** The end is looked at first, since it mostly decides. Each run between two ** is taken where it first fits: nothing is tried twice. */
function gapsMatch({ gaps, isOpen }: PathPattern, segments: readonly string[], from: number): boolean {
  const last = isOpen ? NO_PARTS : (gaps.at(-1) ?? NO_PARTS)
  const end = segments.length - last.length
  if (end < from || !runMatches(last, segments, end)) return false
  const between = isOpen ? gaps.length : gaps.length - 1
  let depth = from
  for (let index = 0; index < between; index++) {
    const run = gaps[index] ?? NO_PARTS
    while (depth + run.length <= end && !runMatches(run, segments, depth)) depth += 1
    depth += run.length
    if (depth > end) return false
  }
  return true
}

const NO_PARTS: readonly Part[] = []

function runMatches(run: readonly Part[], segments: readonly string[], depth: number): boolean {
  for (let index = 0; index < run.length; index++) {
    const part = run[index]
    const segment = segments[depth + index]
    if (part === undefined || segment === undefined || !partMatches(part, segment)) return false
  }
  return true
}

function partMatches(part: Part, segment: string): boolean {
  if (part.kind === 'literal') return part.text === segment
  return segment !== '' && (part.kind === 'any' || globMatches(part.glob, segment))
}

/** Each piece is taken where it first occurs, the last one at the end. */
function globMatches({ pieces }: SegmentGlob, segment: string): boolean {
  const first = pieces[0] ?? ''
  const last = pieces.at(-1) ?? ''
  if (first.length + last.length > segment.length || !segment.startsWith(first) || !segment.endsWith(last)) return false
  const end = segment.length - last.length
  let from = first.length
  for (let index = 1; index < pieces.length - 1; index++) {
    const piece = pieces[index] ?? ''
    const at = segment.indexOf(piece, from)
    if (at < 0 || at + piece.length > end) return false
    from = at + piece.length
  }
  return true
}
