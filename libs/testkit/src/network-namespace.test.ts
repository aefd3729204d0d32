import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { test } from 'node:test'
import { networkNamespace, requires } from './mod.ts'

const skip = await requires({ root: true, tools: ['ip'] })

/** A client inside the namespace that prints which address it was seen from. */
const CLIENT = (host: string, port: number) =>
  `require('net').connect(${port}, '${host}').on('data', (seen) => process.stdout.write(seen))`

for (const family of ['address', 'address6'] as const) {
  test(`a program inside reaches this side from its own ${family}`, { skip }, async () => {
    await using namespace = await networkNamespace()
    const host = family === 'address' ? namespace.hostAddress : namespace.hostAddress6
    const server = createServer((socket) => socket.end(socket.remoteAddress ?? ''))
    server.listen(0, host)
    await once(server, 'listening')
    try {
      const bound = server.address()
      assert.ok(bound !== null && typeof bound === 'object')
      assert.equal(await namespace.exec(process.execPath, ['-e', CLIENT(host, bound.port)]), namespace[family])
    } finally {
      server.close()
    }
  })
}

test('namespace, devices and what runs inside are gone when the scope ends', { skip }, async () => {
  let name: string
  let exited: Promise<unknown>
  {
    await using namespace = await networkNamespace()
    name = namespace.name
    assert.match(await namespace.exec('ip', ['-oneline', 'address', 'show', namespace.device]), /198\.1[89]\./)
    await using inside = await namespace.start('sleep', ['infinity'])
    exited = inside.exited
  }
  assert.equal(await exited, 'SIGTERM')
  await using other = await networkNamespace()
  assert.doesNotMatch(await other.exec('ip', ['netns', 'list']), new RegExp(`^${name}\\b`, 'm'))
})

test('work within a namespace sees its devices, and afterwards this side is as before even if it failed', {
  skip,
}, async () => {
  await using namespace = await networkNamespace()
  const devices = () => readFileSync('/proc/thread-self/net/dev', 'utf8')
  assert.match(namespace.within(devices), new RegExp(`^ *${namespace.device}:`, 'm'))
  const failure = new Error('of the work')
  assert.throws(
    () =>
      namespace.within(() => {
        throw failure
      }),
    failure,
  )
  assert.match(devices(), new RegExp(`^ *${namespace.hostDevice}:`, 'm'))
})
