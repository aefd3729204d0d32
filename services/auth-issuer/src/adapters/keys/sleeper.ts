/** Pauses that somebody else can end. */
export interface Sleeper {
  /** Resolves after `ms`, or when it is woken. If it was woken since the last pause it resolves at once. */
  sleep(ms: number): Promise<void>
  wake(): void
}

/** Makes a sleeper for one loop. */
export function openSleeper(): Sleeper {
  let woken = false
  let end: (() => void) | undefined
  return {
    sleep: async (ms) => {
      if (!woken) {
        await new Promise<void>((resolve) => {
          const timer = setTimeout(resolve, ms)
          end = () => {
            clearTimeout(timer)
            resolve()
          }
        })
      }
      woken = false
      end = undefined
    },
    wake: () => {
      woken = true
      end?.()
    },
  }
}
