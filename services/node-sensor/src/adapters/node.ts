import { networkInterfaces } from 'node:os'
import { parseAddress } from '@tollward/contracts'
import { bootTimeNs } from '@tollward/libbpf'
import type { Logger } from 'pino'
import type { BlockTable } from './block-table.ts'
import type { Hooks } from './hooks.ts'
import type { Kernel } from './kernel.ts'
import type { KernelRules } from './kernel-rules.ts'

const LOOK_INTERVAL_MS = 2000
/** A wall clock that moved by more against the kernel's was set. */
const CLOCK_STEP_MS = 1000
/** Guarded by the kernel programs themselves, even if no interface has them. */
const LOCALHOST = ['127.0.0.1', '::1']

interface WatchOptions {
  readonly kernel: Kernel
  readonly table: BlockTable
  readonly rules: KernelRules
  readonly hooks: Hooks
  readonly guardedAddresses: readonly Uint8Array[]
  readonly log: Logger
}

/** The addresses that no block touches: this node's, each address and not its prefix, and the configured ones. */
export function addressesToGuard(configured: readonly Uint8Array[]): Uint8Array[] {
  const own = Object.values(networkInterfaces()).flatMap((addresses = []) => addresses.map(({ address }) => address))
  const parsed = [...LOCALHOST, ...own].map(parseAddress).filter((address) => address !== undefined)
  return [...new Map([...parsed, ...configured].map((address) => [hex(address), address])).values()]
}

/** Keeps the kernel as the node is: its addresses, its interfaces, its clock; and takes out blocks that are over. */
export function watchNode({ kernel, table, rules, hooks, guardedAddresses, log }: WatchOptions): Disposable {
  let guarded = ''
  let bootedAtMs = wallTimeOfBootMs()
  const look = () => {
    const addresses = addressesToGuard(guardedAddresses)
    const now = addresses.map(hex).sort().join()
    if (now !== guarded) {
      guarded = now
      const left = kernel.guard(addresses)
      if (left > 0) log.error({ left }, 'more addresses than the kernel has room to guard')
      table.guard(addresses)
    }
    hooks.refresh()
    const movedMs = wallTimeOfBootMs() - bootedAtMs
    if (Math.abs(movedMs) > CLOCK_STEP_MS) {
      bootedAtMs += movedMs
      log.warn({ movedMs }, 'the wall clock was set; expiries are converted anew')
      table.convertExpiries()
      void rules.convertExpiries()
    }
    table.sweep(Date.now())
  }
  look()
  const timer = setInterval(() => {
    try {
      look()
    } catch (error) {
      log.error({ err: error }, 'the node could not be looked at')
    }
  }, LOOK_INTERVAL_MS)
  return { [Symbol.dispose]: () => clearInterval(timer) }
}

function wallTimeOfBootMs(): number {
  return Date.now() - Number(bootTimeNs() / 1_000_000n)
}

function hex(address: Uint8Array): string {
  return Buffer.from(address).toString('hex')
}
