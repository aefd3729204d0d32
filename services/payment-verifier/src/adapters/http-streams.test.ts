import assert from 'node:assert/strict'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { AppError } from '@tollward/errors'
import { eventually } from '@tollward/testkit'
import { Registry } from 'prom-client'
import { verifierMetrics } from '../metrics.ts'
import { InvoiceStreams } from './http-streams.ts'

async function refusals(registry: Registry): Promise<Record<string, number>> {
  const metric = await registry.getSingleMetric('tollward_payment_streams_refused_total')?.get()
  return Object.fromEntries(metric?.values.map(({ labels, value }) => [labels.reason, value]) ?? [])
}

test('a client may have so many streams, all clients together so many more, and what ends makes room', async () => {
  const registry = new Registry()
  using streams = new InvoiceStreams(verifierMetrics(registry), () => '')
  const open = (clientId: string) => streams.open(clientId, async () => 'x')
  const isRefused = (code: string) => (error: unknown) => error instanceof AppError && error.code === code
  const [first] = await Promise.all(Array.from({ length: 20 }, () => open('greedy')))
  await assert.rejects(open('greedy'), isRefused('resource_exhausted'))
  await assert.doesNotReject(open('other'))
  first?.destroy()
  await eventually(() => streams.size === 20, { what: 'a stream is forgotten' })
  await assert.doesNotReject(open('greedy'))
  for (let index = streams.size; index < 1_000; index += 1) await open(`client-${index}`)
  await assert.rejects(open('late'), isRefused('unavailable'))
  assert.deepEqual(await refusals(registry), { client: 1, all: 1 })
})

test('a stream tells what is, and again only when that has changed', async () => {
  let version = 0
  let state = 'issued\nsecond line'
  using streams = new InvoiceStreams(verifierMetrics(new Registry()), () => String(version))
  const stream = await streams.open('client', async () => state)
  let heard = ''
  stream.on('data', (chunk: Buffer) => {
    heard += chunk.toString()
  })
  version = 1
  await eventually(() => heard.includes('\n:\n'), { what: 'nothing new is heard' })
  assert.equal(heard.split('event: ').length, 2)
  assert.match(heard, /^retry: \d+\n\nevent: invoice\ndata: issued\ndata: second line\n\n/)
  state = 'paid'
  version = 2
  await eventually(() => heard.endsWith('event: invoice\ndata: paid\n\n'), { what: 'the change is heard' })
})

test('what cannot be known for a while ends no stream', async () => {
  let version = 0
  let state: string | undefined = 'issued'
  using streams = new InvoiceStreams(verifierMetrics(new Registry()), () => String(version))
  const read = async () => state ?? Promise.reject(new AppError('unavailable', 'not now'))
  const stream = await streams.open('client', read)
  let heard = ''
  stream.on('data', (chunk: Buffer) => {
    heard += chunk.toString()
  })
  state = undefined
  version = 1
  await eventually(() => heard.endsWith(':\n\n'), { what: 'it is alive' })
  state = 'paid'
  version = 2
  await eventually(() => heard.endsWith('data: paid\n\n'), { what: 'it goes on' })
})

test('whoever does not read on is let go, and counted', async () => {
  const registry = new Registry()
  let version = 0
  using streams = new InvoiceStreams(verifierMetrics(registry), () => String(version++))
  const stream = await streams.open('client', async () => `${version}${'x'.repeat(30_000)}`)
  await eventually(() => stream.destroyed && streams.size === 0, { what: 'the stream is let go' })
  const unread = await registry.getSingleMetric('tollward_payment_streams_unread_total')?.get()
  assert.equal(unread?.values[0]?.value, 1)
})

test('a stream ends after its time, so that whoever comes again is asked who it is, and all end with the service', async () => {
  const metrics = verifierMetrics(new Registry())
  let version = 0
  using short = new InvoiceStreams(metrics, () => String(version++), { lastsMs: 1 })
  const ending = text(await short.open('client', async () => 'x'))
  await eventually(() => short.size === 0, { what: 'it ends' })
  assert.match(await ending, /data: x\n\n$/)
  const streams = new InvoiceStreams(metrics, () => '')
  const stopped = text(await streams.open('client', async () => 'x'))
  streams[Symbol.dispose]()
  await eventually(() => streams.size === 0, { what: 'all end' })
  assert.match(await stopped, /data: x\n\n$/)
})
