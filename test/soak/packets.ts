import { fuzzGuard } from '@tollward/libbpf/testing-fuzz'
import { requires } from '@tollward/testkit'

/** Mutated frames; npm test sends a hundredth. */
const PACKETS = 10_000_000
const PACKETS_AT_ONCE = 500_000

/** Holds the kernel programs against a plain reading of mutated frames. Takes as long as it takes, whatever the minutes. */
export async function soakPackets(): Promise<boolean> {
  const missing = await requires({ root: true, tools: ['clang', 'make'], files: ['/sys/kernel/btf/vmlinux'] })
  if (missing !== false) {
    process.stdout.write(`packets: not run: ${missing}\n`)
    return true
  }
  const seed = Date.now() % 1_000_000_000
  const sums = { readable: 0, dropped: 0 }
  for (let done = 0; done < PACKETS; done += PACKETS_AT_ONCE) {
    try {
      const { readable, dropped } = await fuzzGuard(PACKETS_AT_ONCE, seed + done)
      sums.readable += readable
      sums.dropped += dropped
    } catch (error) {
      process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`)
      return false
    }
    process.stdout.write(
      `packets: ${done + PACKETS_AT_ONCE} frames, ${sums.readable} readable, ${sums.dropped} dropped, seed ${seed + done}\n`,
    )
  }
  return true
}
