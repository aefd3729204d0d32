import {
  type Attachment,
  attachTracepoint,
  BPF_TRACE_UPROBE_MULTI,
  type BpfObject,
  CALL_COUNTER,
  type CallCounterName,
  encodeCallConfig,
  encodeClearPorts,
  hasKernelTracepoint,
  hasSafeReturnProbes,
  hasUprobeMulti,
  loadObject,
  pidNamespaceInum,
} from '@tollward/libbpf'
import type { Logger } from 'pino'

const ONLY_KEY = Buffer.alloc(4)
const PROBES = ['tls_enter', 'tls_leave', 'go_call'] as const
/** Tell what passed a socket, in the process: Linux 6.3. */
const SOCKET_PROGRAMS = { sock_send_length: 'socket_sent', sock_recv_length: 'socket_received' } as const
/** Tells only that a socket was read. */
const READ_PROGRAM = 'socket_read'
const CHANGED_PROGRAM = 'socket_changed'

export interface CallSettings {
  /** Payload of one read or write that is looked at; up to 16,384. */
  readonly payloadBytesMax: number
  /** Payload of all connections of one cgroup; 0: no bound. */
  readonly cgroupBytesPerSecond: number
  readonly cgroupBurstBytes: number
  /** Each so many-th connection is looked at. */
  readonly sampleOneIn: number
  /** Connections with such a port at either end are looked at in the clear. */
  readonly clearPorts: readonly number[]
  /** Room for what was captured and not read yet: a power of two. */
  readonly ringBytes: number
}

/** What newer kernels have: socket tracepoints since Linux 6.3, one link for many probes since 6.6. */
export interface CallFeatures {
  readonly socketTracepoints: boolean
  readonly uprobeMulti: boolean
  /** Some kernels of 2024 kill processes under seccomp at a probe of a return. */
  readonly safeReturnProbes: boolean
}

/** What the running kernel has. */
export function callFeatures(): CallFeatures {
  const socketTracepoints = Object.keys(SOCKET_PROGRAMS).every(hasKernelTracepoint)
  return { socketTracepoints, uprobeMulti: hasUprobeMulti(), safeReturnProbes: hasSafeReturnProbes() }
}

/** The programs that capture calls, loaded and on their tracepoints. Nothing is pinned: it ends with this process. */
export class CallKernel implements Disposable {
  readonly object: BpfObject
  /** How probes are attached on this kernel. */
  readonly how: 'multi' | 'single' | 'none'
  /** What this kernel does without, each as a sentence. */
  readonly missing: readonly string[]
  readonly #attachments: Attachment[]

  constructor(
    object: BpfObject,
    how: CallKernel['how'],
    { attachments, missing }: { attachments: Attachment[]; missing: readonly string[] },
  ) {
    this.object = object
    this.how = how
    this.missing = missing
    this.#attachments = attachments
  }

  /** A counter over all CPUs since the programs were loaded. */
  count(name: CallCounterName): bigint {
    const key = Buffer.alloc(4)
    key.writeUInt32LE(CALL_COUNTER[name])
    return this.object.map('call_counters').sumOfCpus(key)
  }

  /** Puts other settings in force at once; those of maps need a new start. */
  configure(settings: Omit<CallSettings, 'ringBytes'>): void {
    const config = { ...settings, enabled: true, ownPid: process.pid, pidnsInum: pidNamespaceInum() }
    this.object.map('clear_ports').update(ONLY_KEY, encodeClearPorts(settings.clearPorts))
    this.object.map('call_config').update(ONLY_KEY, encodeCallConfig(config))
  }

  [Symbol.dispose](): void {
    for (const attachment of this.#attachments.splice(0)) attachment.close()
    this.object.close()
  }
}

/**
 * Loads the programs of calls.bpf.o and puts them on their tracepoints. What this kernel lacks is left out and named. Throws
 * BpfError if even the rest cannot be loaded.
 */
export function loadCalls(
  path: string,
  settings: CallSettings,
  log: Logger,
  features: CallFeatures = callFeatures(),
): CallKernel {
  const missing: string[] = []
  if (!features.socketTracepoints)
    missing.push('calls in the clear: the tracepoints sock_send_length and sock_recv_length (Linux 6.3)')
  const how = features.safeReturnProbes ? (features.uprobeMulti ? 'multi' : 'single') : 'none'
  if (how === 'none')
    missing.push(
      'calls inside TLS: on this kernel probes kill processes under seccomp (mended in Linux 6.14, 6.13.8, 6.12.20)',
    )
  if (how === 'single') missing.push('probes in one link (Linux 6.6): attaching and detaching take longer')
  const without = features.socketTracepoints ? [READ_PROGRAM] : Object.values(SOCKET_PROGRAMS)
  const object = loadObject(path, {
    maps: { calls: { maxEntries: settings.ringBytes } },
    withoutPrograms: without,
    attachTypes: how === 'multi' ? Object.fromEntries(PROBES.map((name) => [name, BPF_TRACE_UPROBE_MULTI])) : {},
  })
  const attachments: Attachment[] = []
  const kernel = new CallKernel(object, how, { attachments, missing })
  try {
    kernel.configure(settings)
    const wanted = [...Object.values(SOCKET_PROGRAMS), READ_PROGRAM, CHANGED_PROGRAM]
    for (const name of wanted)
      if (!without.some((other) => other === name)) attachments.push(attachTracepoint(object.program(name)))
  } catch (error) {
    kernel[Symbol.dispose]()
    throw error
  }
  log.info({ how, ...(missing.length > 0 && { without: missing }) }, 'programs of calls loaded')
  return kernel
}
