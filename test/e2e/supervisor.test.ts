import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { enterOwnNetwork, eventually, requires, startProcess, temporaryDirectory } from '@tollward/testkit'
import { ROOT } from '../checks/copy.ts'
import { LOCAL } from '../scenario/customer.ts'
import { send } from '../scenario/http.ts'
import { programs } from './local-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
if (process.getuid?.() === 0) enterOwnNetwork()

const READY_MAX_MS = 60_000

test('a killed supervisor ends nothing; the next start ends what it left and takes over', { skip }, async () => {
  await using directory = await temporaryDirectory('tollward-stack-')
  await using cleanup = new AsyncDisposableStack()
  // A supervisor that is killed ends nothing, so a test that fails would leave everything running.
  cleanup.defer(() => {
    for (const { pid } of programs(directory.path)) process.kill(pid, 'SIGKILL')
  })
  const start = () =>
    startProcess(process.execPath, [join(ROOT, 'deploy/local/src/main.ts'), '--state', directory.path], { cwd: ROOT })
  await using first = await start()
  await first.line(/is ready after/, READY_MAX_MS)
  await first.kill('SIGKILL')
  const left = programs(directory.path).map(({ pid }) => pid)
  assert.ok(left.length > 10, 'programs ended with their supervisor')
  assert.equal((await send(`${LOCAL.gateway}/public`)).status, 200, 'traffic stopped with the supervisor')

  await using second = await start()
  await second.line(/is ready after/, READY_MAX_MS)
  const running = new Set(programs(directory.path).map(({ pid }) => pid))
  assert.ok(running.size > 10)
  assert.ok(
    left.every((pid) => !running.has(pid)),
    'a program of the first supervisor still runs beside the new ones',
  )
  assert.equal(await second.stop(), 0)
  await eventually(() => programs(directory.path).length === 0, { what: 'every program to end' })
})
