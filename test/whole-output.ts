// Loaded into each test file's process: it ends itself when its tests have ended, and what its pipe has not taken by then would be
// lost, results with it. Node has no public way to wait for a full pipe.
const { _handle: pipe } = process.stdout as unknown as { _handle?: { setBlocking?(on: boolean): void } }
pipe?.setBlocking?.(true)
