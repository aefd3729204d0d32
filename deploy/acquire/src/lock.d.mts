/** Runs `work` while no other process on this machine holds the lock file at `path`; see lock.mjs. */
export function withLock<T>(
  path: string,
  work: () => Promise<T>,
  options?: { onWait?: (holder: number) => void; signal?: AbortSignal },
): Promise<T>
