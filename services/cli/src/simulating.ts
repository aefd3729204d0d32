import type { Simulation } from '@tollward/decision/policies'
import { fields, printable, type Row } from './output.ts'

/** What a simulation says, as `-o json` promises it. */
export function simulationRow(simulation: Simulation) {
  const { outcome, reason, detail, rule, policies, observes, decision, notes, otherPaths } = simulation
  const admitted = decision.admitted ? decision : undefined
  return {
    ...{ outcome, status: decision.admitted ? undefined : decision.status, reason, detail, rule },
    ...{ policies, mode: observes ? 'observe' : 'enforce' },
    url: admitted && `${admitted.target.host}${admitted.target.path}${admitted.target.query}`,
    rewritten: admitted?.rewritten,
    upstream: admitted && { set: Object.fromEntries(admitted.upstream.set), remove: admitted.upstream.remove },
    problem: decision.admitted ? undefined : (JSON.parse(decision.body) as Row),
    headers: Object.fromEntries(decision.headers),
    limits: simulation.charges,
    candidates: simulation.candidates.map(({ rule, failed, wanted }) => ({ rule, failed, wanted })),
    ...{ otherPaths, notes },
  }
}

export type SimulationRow = ReturnType<typeof simulationRow>

/** A simulation in words: what, why, and why not otherwise. */
export function simulationText(row: SimulationRow): string {
  const { outcome, status, reason, detail, rule = 'none', policies, mode, url, headers } = row
  const counting = policies.length === 0 ? 'none: nothing is admitted' : `${policies.join(', ')} (${mode})`
  const lines = [fields({ outcome, status, reason, detail, rule, policies: counting, url })]
  const section = (title: string, entries: readonly string[]) => {
    if (entries.length > 0) lines.push(`${title}\n${entries.map((entry) => `  ${printable(entry)}\n`).join('')}`)
  }
  const { upstream, problem, limits, candidates, otherPaths, notes } = row
  section('other rules for this path', candidates.map(candidateText))
  if (otherPaths > 0) lines.push(`${otherPaths} rules of this host are for other paths\n`)
  section(
    'counted under',
    limits.map(({ name, requests, perSeconds }) => `${name}: ${requests} in ${perSeconds} s`),
  )
  section('the API gets', [
    ...Object.entries(upstream?.set ?? {}).map(([name, value]) => `${name}: ${value}`),
    ...(upstream?.remove ?? []).map((name) => `without ${name}`),
  ])
  section('the client gets', [
    ...Object.entries(headers).map(([name, value]) => `${name}: ${value}`),
    ...(problem ? [JSON.stringify(problem)] : []),
  ])
  section('not known here', notes)
  return lines.join('')
}

function candidateText({ rule, failed, wanted }: SimulationRow['candidates'][number]): string {
  if (failed === undefined) return `${rule}: matches too, but comes later`
  return `${rule}: wants ${failed} ${JSON.stringify(wanted)}`
}
