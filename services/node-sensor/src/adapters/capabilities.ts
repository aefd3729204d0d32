import { existsSync } from 'node:fs'
import { hasBatches, hasKernelTypes } from '@tollward/libbpf'
import { callFeatures } from './call-kernel.ts'
import type { Hooks } from './hooks.ts'
import type { Kernel } from './kernel.ts'

/** One thing that a kernel may offer, and what this one does. */
export interface Capability {
  readonly name: string
  readonly on: boolean
  /** How it is done; or why it is not, and what is done or missing without it. */
  readonly why: string
}

/** What is missing where a program could not be loaded or attached. */
const WITHOUT: Readonly<Record<string, string>> = {
  watch_handshake: 'no flow says that its handshake was completed or how long a round trip takes',
  watch_send: 'no flow says whose process sends',
  watch_receive: 'the process of a flow is known by what it sends, or by an older tracepoint',
  watch_kernel_drops: 'what the kernel itself drops is not told',
  list_connections: 'a connection older than the sensor has no process until it is used',
}
/** A program that is run when asked, and hangs nowhere. */
const ITERATOR = /^iter\//

/** The table of what this kernel offers, after everything was loaded and attached: each is said as it turned out, not guessed. */
export function capabilitiesOf({ kernel, hooks }: { kernel: Kernel; hooks: Hooks }): Capability[] {
  const types = hasKernelTypes()
  const calls = callFeatures()
  const batches = (['block_cidr4', 'block_cidr6'] as const).map((map) => ({ map, on: hasBatches(kernel.map(map)) }))
  const probes = { uprobes: '/sys/bus/event_source/devices/uprobe', statistics: '/proc/sys/kernel/bpf_stats_enabled' }
  return [
    capability(
      'kernel types (BTF)',
      types,
      'published',
      'no /sys/kernel/btf/vmlinux: nothing of processes and handshakes',
    ),
    ...batches.map(({ map, on }) => capability(`batches of ${map}`, on, 'used', 'too old: written one by one')),
    ...hooks.states().flatMap(hookCapabilities),
    ...hooks
      .traced()
      .map(({ name, fault }) =>
        capability(`tracepoint ${name}`, fault === undefined, 'attached', `${fault}: ${WITHOUT[name] ?? 'left out'}`),
      ),
    ...kernel.programs
      .filter(({ section }) => ITERATOR.test(section))
      .map(({ name, fault }) =>
        capability(`iterator ${name}`, fault === undefined, 'loaded', `${fault}: ${WITHOUT[name] ?? 'left out'}`),
      ),
    capability('uprobes', existsSync(probes.uprobes), 'offered', 'the kernel lacks them: nothing inside TLS is seen'),
    capability(
      'uprobes in one link (uprobe_multi)',
      calls.uprobeMulti,
      'offered',
      'too old: one by one, which takes longer',
    ),
    capability(
      'calls in the clear',
      calls.socketTracepoints,
      'offered',
      'too old (6.3): only those inside TLS are seen',
    ),
    capability('cost of programs (bpf_stats)', existsSync(probes.statistics), 'counted', 'too old: not counted'),
    cgroups(),
  ]
}

function hookCapabilities({ name, ingress, egress, faults }: ReturnType<Hooks['states']>[number]): Capability[] {
  const generic = 'generic: slower, as the driver has no hook of its own or is busy with something else'
  return [
    { name: `native XDP on ${name}`, ...xdp(ingress, faults.xdp) },
    capability(`egress on ${name}`, egress !== '', egress, faults.egress ?? ''),
  ]
  function xdp(how: string, fault: string | undefined) {
    if (fault !== undefined) return { on: false, why: `not attached: ${fault}` }
    return how === 'generic' ? { on: false, why: generic } : { on: true, why: how }
  }
}

function cgroups(): Capability {
  const [only, beside] = ['/sys/fs/cgroup/cgroup.controllers', '/sys/fs/cgroup/unified/cgroup.controllers'].map(
    (file) => existsSync(file),
  )
  const how = only ? 'version 2' : 'version 2 beside 1'
  return capability('cgroups of version 2', only === true || beside === true, how, 'version 1 only: containers by path')
}

function capability(name: string, on: boolean, how: string, whyNot: string): Capability {
  return { name, on, why: on ? how : whyNot }
}
