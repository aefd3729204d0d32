import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { freePort, temporaryDirectory } from './mod.ts'
import { startProgram } from './service.ts'

/** Keeps the services' contract: ready at the third probe, 0 on SIGTERM, and 1 with a reason where it cannot start. */
const PROGRAM = `
import { createServer } from 'node:http'
if (process.env.FAULT) {
  console.error(process.env.FAULT)
  process.exit(1)
}
let probes: number = 0
createServer((request, response) => {
  probes += 1
  response.writeHead(request.url === '/healthz/ready' && probes >= 3 ? 200 : 503).end('not yet')
}).listen(Number(process.env.TOLLWARD_HEALTH_PORT), '127.0.0.1')
process.on('SIGTERM', () => process.exit(0))
console.log(Object.keys(process.env).sort().join(' '))
`

async function program() {
  const directory = await temporaryDirectory()
  const main = join(directory.path, 'main.ts')
  await writeFile(main, PROGRAM)
  const env = { TOLLWARD_HEALTH_PORT: String(await freePort()) }
  return { ...directory, main, env }
}

test('a service is ready when it says so, with the given environment and no other', async () => {
  await using fixture = await program()
  await using service = await startProgram('fixture', fixture.main, fixture.env)
  assert.equal((await fetch(`${service.healthUrl}/healthz/ready`)).status, 200)
  assert.equal(await service.line(/PORT/), 'TOLLWARD_HEALTH_PORT')
})

test('a service is killed or stopped, says how it ended, and starts again', async () => {
  await using fixture = await program()
  await using service = await startProgram('fixture', fixture.main, fixture.env)
  await assert.rejects(service.start(), /runs already/)
  const { pid } = service
  assert.equal(await service.kill(), 'SIGKILL')
  await service.start({ ...fixture.env, MORE: 'x' })
  assert.notEqual(service.pid, pid)
  assert.equal(await service.stop(), 0)
  assert.deepEqual(service.lines, ['TOLLWARD_HEALTH_PORT', 'MORE TOLLWARD_HEALTH_PORT'])
})

test('a service that ends before it is ready is reported with its last words', async () => {
  await using fixture = await program()
  const started = startProgram('fixture', fixture.main, { ...fixture.env, FAULT: 'no such issuer' })
  await assert.rejects(started, /fixture ended \(1\):\nno such issuer/)
})

test('a service without a health port is refused', async () => {
  await using fixture = await program()
  await assert.rejects(startProgram('fixture', fixture.main, {}), /TOLLWARD_HEALTH_PORT/)
})
