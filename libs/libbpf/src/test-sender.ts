/** Runs a program on frames from another thread until told to stop, then says how many packets it sent. */
import assert from 'node:assert/strict'
import { parentPort, workerData } from 'node:worker_threads'
import { testRun } from './object.ts'

/** In one system call: so often that a count is most likely under way whenever anything else happens. */
const REPEAT = 400_000

const { fd, frames, stop } = workerData as { fd: number; frames: Uint8Array[]; stop: Int32Array }
assert(parentPort)
let sent = 0
while (Atomics.load(stop, 0) === 0) {
  for (const frame of frames) testRun({ name: 'xdp_guard', fd }, frame, REPEAT)
  sent += frames.length * REPEAT
}
parentPort.postMessage(sent)
