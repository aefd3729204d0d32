import { checkErrno, libc } from './native.ts'

const CLOCK_BOOTTIME = 7
const NANOSECONDS_PER_SECOND = 1_000_000_000n
const NANOSECONDS_PER_MILLISECOND = 1_000_000n

/** Now in nanoseconds of CLOCK_BOOTTIME: the clock of the kernel programs. It counts suspended time and never jumps. */
export function bootTimeNs(): bigint {
  const time = Buffer.alloc(16)
  checkErrno('clock_gettime', libc().clock_gettime(CLOCK_BOOTTIME, time))
  return time.readBigInt64LE(0) * NANOSECONDS_PER_SECOND + time.readBigInt64LE(8)
}

/** A moment of the wall clock (milliseconds since 1970) in boot time, by what both clocks say now. Never 0: that means "never". */
export function wallTimeToBootNs(wallTimeMs: number): bigint {
  const differenceMs = BigInt(Math.round(wallTimeMs - Date.now()))
  const bootNs = bootTimeNs() + differenceMs * NANOSECONDS_PER_MILLISECOND
  return bootNs > 0n ? bootNs : 1n
}

/** A moment of boot time as milliseconds since 1970, by what both clocks say now. */
export function bootNsToWallTimeMs(bootNs: bigint): number {
  return Date.now() - Number((bootTimeNs() - bootNs) / NANOSECONDS_PER_MILLISECOND)
}
