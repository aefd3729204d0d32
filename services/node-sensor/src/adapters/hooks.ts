import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { AppError } from '@tollward/errors'
import {
  type Attachment,
  attachEgress,
  attachTracepoint,
  attachXdp,
  interfaceIndex,
  removePins,
  xdpMode,
} from '@tollward/libbpf'
import type { Logger } from 'pino'
import type { Metrics } from '../metrics.ts'
import type { Kernel } from './kernel.ts'
import { INTERFACE_DIRECTORY } from './pins.ts'

const HOOKS = { xdp: attachXdp, egress: attachEgress } as const
/** Sections of the programs that belong on each interface; the first program of a section. */
const SECTIONS = { xdp: /^xdp/, egress: /^(tc|tcx|classifier)\b/ } as const
/** Programs that hang on a tracepoint of the kernel, once for all interfaces. */
const TRACEPOINT = /^(tp_btf|raw_tp|raw_tracepoint)\//
/** A program with this at the end of its name does the work of the one without on kernels that lack that one's tracepoint. */
const SPARE = '_older'

/** One place where a program should be, and whether it is. */
interface Hook {
  readonly interface: string
  readonly hook: keyof typeof HOOKS
  ifindex: number | undefined
  attachment: Attachment | undefined
  /** Why it is not. */
  fault: string | undefined
}

interface HooksOptions {
  readonly kernel: Kernel
  /** Directory of the pins. */
  readonly directory: string
  readonly interfaces: readonly string[]
  readonly metrics: Metrics
  readonly log: Logger
}

/** A program on a tracepoint. */
interface Tracing {
  readonly name: string
  readonly attachment: Attachment | undefined
  readonly fault: string | undefined
}

/** An interface and how the programs hang on it, for whoever shows it. */
export interface InterfaceState {
  readonly name: string
  /** 0: there is no such interface. */
  readonly index: number
  /** `native` or `generic`; empty: not attached. */
  readonly ingress: string
  /** `tcx` or `clsact`; empty: not attached. */
  readonly egress: string
  /** Why something is not attached. */
  readonly faults: { readonly xdp?: string | undefined; readonly egress?: string | undefined }
}

/** The programs on their hooks, pinned: disposing this, or the end of the process, takes none off. */
export class Hooks implements Disposable {
  readonly #options: HooksOptions
  readonly #hooks: readonly Hook[]
  readonly #tracing: readonly Tracing[]

  /** Attaches what can be attached, and takes off what earlier sensors left on interfaces that are no longer configured. */
  constructor(options: HooksOptions) {
    this.#options = options
    this.#hooks = options.interfaces.flatMap((name) =>
      (['xdp', 'egress'] as const).map((hook) => ({
        ...{ interface: name, hook },
        ...{ ifindex: undefined, attachment: undefined, fault: 'not tried yet' },
      })),
    )
    this.refresh()
    this.#tracing = options.kernel.programs
      .filter(({ name, section }) => TRACEPOINT.test(section) && !this.#isSpare(name))
      .map(({ name }) => this.#trace(name))
  }

  /** Attaches what is missing: interfaces come and go. */
  refresh(): void {
    for (const hook of this.#hooks) this.#refreshHook(hook)
    this.#removeOthers()
  }

  /** What is not attached, and why; undefined: all is. */
  fault(): string | undefined {
    const faults = this.#hooks.filter(({ fault }) => fault !== undefined)
    return faults.map((hook) => `${hook.hook} on ${hook.interface}: ${hook.fault}`).join('; ') || undefined
  }

  /** Every interface that the sensor is to guard. */
  states(): readonly InterfaceState[] {
    return this.#options.interfaces.map((name) => {
      const [xdp, egress] = (['xdp', 'egress'] as const).map((hook) =>
        this.#hooks.find((candidate) => candidate.interface === name && candidate.hook === hook),
      )
      const ifindex = xdp?.ifindex
      return {
        ...{ name, index: ifindex ?? 0 },
        ingress: (xdp?.attachment && ifindex !== undefined && xdpMode(ifindex)) || '',
        // One that was adopted is a pinned link, and only tcx has links.
        egress: egress?.attachment?.mode.replace('adopted', 'tcx') ?? '',
        faults: { xdp: xdp?.fault, egress: egress?.fault },
      }
    })
  }

  /** Programs on tracepoints, and why one is not. */
  traced(): readonly { readonly name: string; readonly fault: string | undefined }[] {
    return this.#tracing
  }

  interfaceName(ifindex: number): string {
    return this.#hooks.find((hook) => hook.ifindex === ifindex)?.interface ?? ''
  }

  [Symbol.dispose](): void {
    for (const { attachment } of this.#hooks) attachment?.close()
    for (const { attachment } of this.#tracing) attachment?.close()
  }

  #refreshHook(hook: Hook): void {
    const before = hook.fault
    try {
      const ifindex = interfaceIndex(hook.interface)
      if (hook.attachment && hook.ifindex === ifindex) {
        hook.fault = undefined
        return
      }
      hook.attachment?.close()
      hook.attachment = undefined
      hook.ifindex = ifindex
      if (ifindex === undefined) throw new AppError('not_found', 'there is no such interface')
      hook.attachment = this.#attach(hook.hook, ifindex)
      hook.fault = undefined
    } catch (error) {
      hook.fault = messageOf(error)
    }
    const { log, metrics } = this.#options
    const labels = { interface: hook.interface, hook: hook.hook }
    metrics.hooks.set(labels, hook.attachment ? 1 : 0)
    if (hook.fault === undefined) log.info({ ...labels, on: true, how: hook.attachment?.mode }, 'kernel part')
    else if (hook.fault !== before) log.error({ ...labels, on: false, why: hook.fault }, 'kernel part')
  }

  #attach(hook: Hook['hook'], ifindex: number): Attachment {
    const { directory, kernel } = this.#options
    const pins = join(directory, `interface_${ifindex}`)
    mkdirSync(pins, { recursive: true })
    return HOOKS[hook](kernel.program(this.#programOf(hook)), { ifindex, pinPath: join(pins, hook) })
  }

  #programOf(hook: Hook['hook']): string {
    const found = this.#options.kernel.programs.find(({ section }) => SECTIONS[hook].test(section))
    if (!found) throw new AppError('failed_precondition', `the kernel programs hold none for ${hook}`)
    return found.name
  }

  #removeOthers(): void {
    const { directory, log } = this.#options
    for (const name of readdirSync(directory)) {
      const index = INTERFACE_DIRECTORY.exec(name)?.[1]
      if (index === undefined || this.#hooks.some(({ ifindex }) => ifindex === Number(index))) continue
      log.info({ ifindex: Number(index), removed: removePins(join(directory, name)) }, 'another interface was let go')
    }
  }

  /** Whether the program only stands in for another on older kernels, and that one works. */
  #isSpare(name: string): boolean {
    if (!name.endsWith(SPARE)) return false
    const better = this.#options.kernel.programs.find((program) => program.name === name.slice(0, -SPARE.length))
    return better !== undefined && better.fault === undefined
  }

  /** Without such a program the sensor guards and counts all the same; what it would have told is missing. */
  #trace(name: string): Tracing {
    const { kernel, directory, log } = this.#options
    const part = { hook: 'tracepoint', program: name }
    try {
      const attachment = attachTracepoint(kernel.program(name), { pinPath: join(directory, `tracing_${name}`) })
      log.info({ ...part, on: true, how: attachment.mode }, 'kernel part')
      return { name, attachment, fault: undefined }
    } catch (error) {
      log.warn({ ...part, on: false, why: messageOf(error) }, 'kernel part')
      return { name, attachment: undefined, fault: messageOf(error) }
    }
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
