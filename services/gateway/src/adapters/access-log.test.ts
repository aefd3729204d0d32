import assert from 'node:assert/strict'
import { Writable } from 'node:stream'
import { test } from 'node:test'
import { createLog } from '@tollward/runtime'
import { eventually } from '@tollward/testkit'
import { Registry } from 'prom-client'
import { gatewayMetrics } from '../metrics.ts'
import { openAccessLog } from './access-log.ts'

const LINES = 100_000

test('lines for a disk that is too slow are dropped and counted, and memory is bounded', async () => {
  const taken: (() => void)[] = []
  const stdout = new Writable({ write: (_chunk, _encoding, done) => void taken.push(done) })
  const metrics = gatewayMetrics(new Registry())
  const options = { format: 'common', file: undefined, stdout, metrics, log: createLog('test', 'silent') } as const
  await using log = await openAccessLog(options)
  const count = async (result: string) => {
    const { values } = await metrics.accessLines.get()
    return values.find(({ labels }) => labels.result === result)?.value ?? 0
  }
  const access = {
    ...{
      atMs: 0,
      address: '192.0.2.1',
      method: 'GET',
      target: '/',
      version: '1.1',
      host: 'a',
      referer: '',
      userAgent: '',
    },
    ...{ status: 200, bytesSent: 1, bytesReceived: 0, durationMs: 1, decisionMs: 1, upstreamMs: 1, decision: 'id' },
    ...{ reason: '', rule: '', client: '', subject: '', complete: true },
  }
  for (let line = 0; line < LINES; line++) log.write(() => access)
  await eventually(async () => (await count('written')) > 0, { what: 'some are written' })
  const [written, dropped] = [await count('written'), await count('dropped')]
  assert.equal(written + dropped, LINES)
  assert.ok(dropped > 0 && stdout.writableLength < 5_000_000)
  for (const done of taken) done()
})
