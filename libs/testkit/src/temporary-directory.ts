import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** An empty directory that is removed, with all in it, when its scope ends. */
export interface TemporaryDirectory extends AsyncDisposable {
  readonly path: string
}

/** Makes an empty directory for one test: `await using directory = await temporaryDirectory()`. */
export async function temporaryDirectory(prefix = 'tollward-test-'): Promise<TemporaryDirectory> {
  const path = await mkdtemp(join(tmpdir(), prefix))
  // Programs that were just killed may still be writing for a moment.
  const remove = () => rm(path, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 })
  return { path, [Symbol.asyncDispose]: remove }
}
