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
} from '@tollward/libbpf'
import type { Logger } from 'pino'
import type { Metrics } from '../metrics.ts'
import { HANDSHAKE_PROGRAM, hasKernelTypes, type Kernel } from './kernel.ts'

/** Pins of one interface: its index, as names may hold dots and a bpffs takes none. */
const INTERFACE_DIRECTORY = /^interface_(\d+)$/
const HOOKS = { xdp: attachXdp, egress: attachEgress } as const
const PROGRAMS = { xdp: 'xdp_guard', egress: 'guard_egress' } as const

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

/** The programs on their hooks, pinned: disposing this, or the end of the process, takes none off. */
export class Hooks implements Disposable {
  readonly #options: HooksOptions
  readonly #hooks: readonly Hook[]
  readonly #handshake: Attachment | undefined

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
    this.#handshake = this.#watchHandshakes()
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

  interfaceName(ifindex: number): string {
    return this.#hooks.find((hook) => hook.ifindex === ifindex)?.interface ?? ''
  }

  [Symbol.dispose](): void {
    for (const { attachment } of this.#hooks) attachment?.close()
    this.#handshake?.close()
  }

  #refreshHook(hook: Hook): void {
    const ifindex = interfaceIndex(hook.interface)
    if (hook.attachment && hook.ifindex === ifindex) return
    const before = hook.fault
    hook.attachment?.close()
    hook.attachment = undefined
    hook.ifindex = ifindex
    try {
      if (ifindex === undefined) throw new AppError('not_found', 'there is no such interface')
      hook.attachment = this.#attach(hook.hook, ifindex)
      hook.fault = undefined
    } catch (error) {
      hook.fault = error instanceof Error ? error.message : String(error)
    }
    const { log, metrics } = this.#options
    const labels = { interface: hook.interface, hook: hook.hook }
    metrics.hooks.set(labels, hook.attachment ? 1 : 0)
    if (hook.attachment) log.info({ ...labels, on: true, how: hook.attachment.mode }, 'kernel part')
    else if (hook.fault !== before) log.error({ ...labels, on: false, why: hook.fault }, 'kernel part')
  }

  #attach(hook: Hook['hook'], ifindex: number): Attachment {
    const directory = join(this.#options.directory, `interface_${ifindex}`)
    mkdirSync(directory, { recursive: true })
    const program = this.#options.kernel.object.program(PROGRAMS[hook])
    return HOOKS[hook](program, { ifindex, pinPath: join(directory, hook) })
  }

  #removeOthers(): void {
    const { directory, log } = this.#options
    for (const name of readdirSync(directory)) {
      const index = INTERFACE_DIRECTORY.exec(name)?.[1]
      if (index === undefined || this.#hooks.some(({ ifindex }) => ifindex === Number(index))) continue
      log.info({ ifindex: Number(index), removed: removePins(join(directory, name)) }, 'another interface was let go')
    }
  }

  /** Without it the sensor guards and counts all the same; only no flow is known to come from a true address. */
  #watchHandshakes(): Attachment | undefined {
    const { kernel, directory, log } = this.#options
    const part = { hook: 'handshakes' }
    try {
      if (!hasKernelTypes()) throw new AppError('failed_precondition', 'this kernel publishes no types (BTF)')
      const program = kernel.object.program(HANDSHAKE_PROGRAM)
      const attachment = attachTracepoint(program, { pinPath: join(directory, 'handshakes') })
      log.info({ ...part, on: true, how: attachment.mode }, 'kernel part')
      return attachment
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error)
      log.warn({ ...part, on: false, why, so: 'no flow says that its handshake was completed' }, 'kernel part')
      return undefined
    }
  }
}
