/** A state as the file has it: SensorState in the JSON of protobuf, and how the rules file is. Whatever it lacks is not shown. */
export interface HostState {
  readonly node?: string
  readonly version?: string
  readonly kernel?: string
  readonly mode?: string
  readonly startedAt?: string
  readonly reportedAt?: string
  readonly interfaces?: readonly { readonly name?: string; readonly ingress?: string; readonly egress?: string }[]
  readonly counters?: readonly Count[]
  readonly maps?: readonly { readonly name?: string; readonly entries?: string }[]
  readonly rules?: readonly RuleLine[]
  readonly losses?: readonly Count[]
  readonly faults?: readonly string[]
  readonly rulesFile?: {
    readonly file?: string
    readonly takenAt?: string
    readonly rules?: number
    readonly blocks?: number
  }
}

interface Count {
  readonly name?: string
  readonly value?: string
}

interface RuleLine {
  readonly name?: string
  readonly action?: string
  readonly packets?: string
  readonly dropped?: string
  readonly audited?: string
  readonly fault?: string
}

/** A state is told every two seconds. */
const SILENCE_MAX_MS = 10_000

/** Whether the sensor that said this still runs, as far as its silence tells. */
export function isCurrent({ reportedAt = '' }: HostState, nowMs: number): boolean {
  return nowMs - Date.parse(reportedAt) <= SILENCE_MAX_MS
}

/** A state as a person reads it. */
export function statusText(state: HostState, nowMs: number): string {
  const { node = '', mode = '', version = '', kernel = '', interfaces = [], rules = [], faults = [], rulesFile } = state
  const since = isCurrent(state, nowMs)
    ? `runs since ${state.startedAt}`
    : `is silent since ${state.reportedAt}; what it put into the kernel stays in force`
  const counts = (values: readonly Count[] = []) =>
    values.filter(({ value = '0' }) => value !== '0').map(({ name, value }) => `${name} ${value}`)
  const blocks = (state.maps ?? []).filter(
    ({ name = '', entries }) => name.startsWith('block_') && entries !== undefined,
  )
  const lines = [
    `tollward-archsec ${version} on ${node} (Linux ${kernel}), mode ${mode}: ${since}`,
    ...faults.map((fault) => `fault: ${fault}`),
    ...interfaces.map(
      ({ name, ingress, egress }) => `interface ${name}: in ${ingress || 'OFF'}, out ${egress || 'OFF'}`,
    ),
    `rules file ${rulesFile?.file}: ${rulesFile?.rules} rules, ${rulesFile?.blocks} blocks, taken ${rulesFile?.takenAt ?? 'never'}`,
    `blocks in the kernel: ${blocks.map(({ name = '', entries = '0' }) => `${name.slice('block_'.length)} ${entries}`).join(', ')}`,
    `packets: ${counts(state.counters).join(', ') || 'none'}`,
    ...rules.map(ruleText),
    ...(counts(state.losses).length > 0 ? [`lost: ${counts(state.losses).join(', ')}`] : []),
  ]
  return lines.join('\n')
}

function ruleText({ name, action, packets = '0', dropped = '0', audited = '0', fault = '' }: RuleLine): string {
  const would = audited === '0' ? '' : `, ${audited} would be dropped`
  return `rule ${name} (${action}): ${packets} packets, ${dropped} dropped${would}${fault === '' ? '' : `; not in force: ${fault}`}`
}
