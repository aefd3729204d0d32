/** Loads the programs, pins everything, attaches to one interface, says how, and then only waits for its end. Or, asked so, detaches. */
import assert from 'node:assert/strict'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { attachEgress, attachTracepoint, attachXdp, interfaceIndex, loadObject, removePins } from './mod.ts'
import { PINNED_MAPS } from './test-sensor.ts'

const [, , object, directory, name, hook] = process.argv
assert(object && directory && name)
if (hook === 'detach') {
  console.log(removePins(directory))
  process.exit()
}
assert(hook === 'auto' || hook === 'clsact')
mkdirSync(directory, { recursive: true })
const maps = Object.fromEntries(PINNED_MAPS.map((map) => [map, { pinPath: join(directory, map) }]))
const loaded = loadObject(object, { maps })
const ifindex = interfaceIndex(name)
assert(ifindex, `there is an interface ${name}`)
const xdp = attachXdp(loaded.program('xdp_guard'), { ifindex, pinPath: join(directory, 'xdp') })
const egress = attachEgress(loaded.program('guard_egress'), { ifindex, hook, pinPath: join(directory, 'egress') })
const tracing = attachTracepoint(loaded.program('watch_handshake'), { pinPath: join(directory, 'handshake') })
console.log([xdp.mode, egress.mode, tracing.mode].join(' '))
setInterval(() => undefined, 60_000)
