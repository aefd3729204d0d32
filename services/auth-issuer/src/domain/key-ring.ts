/** What the ring has a key of. ES256 signs what stays inside; clients choose for their id tokens. */
export const KEY_ALGORITHMS = ['ES256', 'EdDSA'] as const
export type KeyAlgorithm = (typeof KEY_ALGORITHMS)[number]

/** A signing key, without its secret. Times are milliseconds since the epoch. */
export interface RingKey {
  readonly kid: string
  readonly algorithm: KeyAlgorithm
  /** Counts the keys of its algorithm; each is the successor of the one before. */
  readonly number: number
  readonly createdAtMs: number
  readonly signsFromMs: number
  /** Written down when its successor had taken over. */
  readonly retired?: { readonly signsUntilMs: number; readonly removedAtMs: number }
  /** False: this replica cannot decrypt it. */
  readonly readable: boolean
}

export interface RingTimes {
  /** How long a key signs until the next one does. */
  readonly rotationIntervalMs: number
  /** How long a key is published before it signs: longer than anybody keeps the published keys without asking again. */
  readonly leadMs: number
  /** How long a key is published after it signed for the last time: until the last token of it is over. */
  readonly retentionMs: number
}

/** Something that one of the replicas has to do now. */
export type RingTask =
  | {
      readonly do: 'publish'
      readonly algorithm: KeyAlgorithm
      readonly number: number
      readonly signsFromMs: number
    }
  | { readonly do: 'retire'; readonly key: RingKey; readonly successor: RingKey; readonly life: Required<KeyLife> }
  | { readonly do: 'remove'; readonly key: RingKey }

/** When a key stops signing and is no longer published; absent as long as it has no successor. */
export interface KeyLife {
  readonly signsUntilMs?: number
  readonly removedAtMs?: number
}

export interface RingState {
  /** The key of each algorithm that signs now. */
  readonly signing: ReadonlyMap<KeyAlgorithm, RingKey>
  /** What verifiers get: the signing ones first, so that whoever takes the first one that fits signs with the right one. */
  readonly published: readonly RingKey[]
  readonly tasks: readonly RingTask[]
  /** When the state is another one, if nobody changes the keys before. */
  readonly nextAtMs: number
}

/** The ring at a moment. Every replica comes to the same answer from the same keys, so none has to ask another. */
export function ringAt(keys: readonly RingKey[], nowMs: number, times: RingTimes): RingState {
  const signing = new Map<KeyAlgorithm, RingKey>()
  const published: RingKey[] = []
  const tasks: RingTask[] = []
  const moments: number[] = []
  for (const algorithm of KEY_ALGORITHMS) {
    const line = lineOf(keys, algorithm)
    const signer = signerOf(line, nowMs)
    if (signer) signing.set(algorithm, signer)
    const next = nextKey(line, algorithm, nowMs, times)
    if (next.dueAtMs <= nowMs) tasks.push(next.task)
    else moments.push(next.dueAtMs)
    for (const [index, key] of line.entries()) {
      const successor = line[index + 1]
      const { signsUntilMs = Infinity, removedAtMs = Infinity } = lifeOf(key, successor, times)
      moments.push(key.signsFromMs, removedAtMs)
      if (key.readable && removedAtMs > nowMs) published.push(key)
      if (key.retired && removedAtMs <= nowMs) tasks.push({ do: 'remove', key })
      if (!key.retired && successor && signsUntilMs <= nowMs)
        tasks.push({ do: 'retire', key, successor, life: { signsUntilMs, removedAtMs } })
    }
  }
  const isSigning = (key: RingKey) => signing.get(key.algorithm) === key
  return {
    signing,
    published: published.sort((one, other) => Number(isSigning(other)) - Number(isSigning(one))),
    tasks,
    nextAtMs: Math.min(...moments.filter((moment) => moment > nowMs)),
  }
}

/** The key that is to be made when somebody asks for one; undefined: one is on its way already. */
export function rotationNow(
  keys: readonly RingKey[],
  algorithm: KeyAlgorithm,
  nowMs: number,
  { leadMs }: RingTimes,
): Extract<RingTask, { do: 'publish' }> | undefined {
  const newest = lineOf(keys, algorithm).at(-1)
  if (!newest) return { do: 'publish', algorithm, number: 1, signsFromMs: nowMs }
  if (newest.signsFromMs > nowMs) return undefined
  return { do: 'publish', algorithm, number: newest.number + 1, signsFromMs: nowMs + leadMs }
}

/** When a key stops signing and leaves: what was written down, or what follows from its successor. */
export function lifeOf(key: RingKey, successor: RingKey | undefined, { retentionMs }: RingTimes): KeyLife {
  if (key.retired) return key.retired
  if (!successor) return {}
  return { signsUntilMs: successor.signsFromMs, removedAtMs: successor.signsFromMs + retentionMs }
}

/** The keys of an algorithm, each followed by its successor. */
export function lineOf(keys: readonly RingKey[], algorithm: KeyAlgorithm): RingKey[] {
  return keys.filter((key) => key.algorithm === algorithm).sort((one, other) => one.number - other.number)
}

/** The newest whose time has come. The very first signs at once, also by a clock that is a little slow. */
function signerOf(line: readonly RingKey[], nowMs: number): RingKey | undefined {
  const readable = line.filter((key) => key.readable)
  return readable.findLast((key) => key.signsFromMs <= nowMs) ?? readable[0]
}

function nextKey(line: readonly RingKey[], algorithm: KeyAlgorithm, nowMs: number, times: RingTimes) {
  const newest = line.at(-1)
  const task = { do: 'publish', algorithm } as const
  if (!newest) return { dueAtMs: nowMs, task: { ...task, number: 1, signsFromMs: nowMs } }
  const { leadMs, rotationIntervalMs } = times
  const dueAtMs = newest.signsFromMs + Math.max(0, rotationIntervalMs - leadMs)
  return { dueAtMs, task: { ...task, number: newest.number + 1, signsFromMs: nowMs + leadMs } }
}
