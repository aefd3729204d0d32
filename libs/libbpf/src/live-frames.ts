import { addressOf, check, libbpf } from './native.ts'
import type { BpfProgram } from './object.ts'

const TEST_RUN_OPTS_BYTES = 80
/** BPF_F_TEST_XDP_LIVE_FRAMES of <linux/bpf.h>; Linux 5.18. */
const LIVE_FRAMES = 2
/** Frames under way at once; the kernel's own limit. */
const BATCH_FRAMES = 256

/**
 * Runs an XDP program so many times on copies of a frame that really go where the program sends them: a generator of packets
 * without a device's limits. Blocks the thread until all are sent. The program sees what an earlier run left in its copy.
 */
export function sendLiveFrames(program: BpfProgram, frame: Uint8Array, frames: number): void {
  const opts = Buffer.alloc(TEST_RUN_OPTS_BYTES)
  opts.writeBigUInt64LE(BigInt(TEST_RUN_OPTS_BYTES), 0)
  opts.writeBigUInt64LE(addressOf(frame), 8)
  opts.writeUInt32LE(frame.length, 24)
  opts.writeInt32LE(frames, 60)
  opts.writeUInt32LE(LIVE_FRAMES, 68)
  opts.writeUInt32LE(BATCH_FRAMES, 76)
  check(`sending frames by ${program.name}`, libbpf().bpf_prog_test_run_opts(program.fd, opts))
}
