import { execFileSync } from 'node:child_process'
import koffi from 'koffi'

const CLONE_NEWNS = 0x0002_0000
const CLONE_NEWNET = 0x4000_0000

/**
 * Moves this process, and with it all programs that it starts, into a network of its own with nothing but `lo`, and gives it
 * mounts of its own with a bpffs: a test can then use fixed ports and attach kernel programs to `lo` beside whatever else runs.
 * Call it before the first socket is opened. Needs root and Linux. Only sockets of the main thread are meant: names are still
 * resolved outside.
 */
export function enterOwnNetwork(): void {
  const libc = koffi.load('libc.so.6')
  const unshare = libc.func('int unshare(int flags)') as (flags: number) => number
  if (unshare(CLONE_NEWNS | CLONE_NEWNET) !== 0) {
    throw new Error(`unshare failed (errno ${koffi.errno()}): this needs root on Linux`)
  }
  // Programs inherit the main thread's namespaces; without this, their mounts would spread to the whole system.
  execFileSync('mount', ['--make-rprivate', '/'])
  execFileSync('mount', ['-t', 'bpf', 'none', '/sys/fs/bpf'])
  execFileSync('ip', ['link', 'set', 'lo', 'up'])
}
