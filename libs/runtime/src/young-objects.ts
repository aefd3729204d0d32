import { setFlagsFromString } from 'node:v8'

/**
 * Has every new object begin in the young heap. By itself V8 remembers the places in code most of whose objects stayed, and from then on
 * makes theirs in the old heap at once. What a service learns while it starts (blocks, tokens, documents) stays, and the same code then
 * reads thousands of messages a second that don't: each would fill the old heap, and with it keep what it points to, until the next
 * collection of everything. To be called before any of it is learnt.
 */
export function keepNewObjectsYoung(): void {
  setFlagsFromString('--no-allocation-site-pretenuring')
}
