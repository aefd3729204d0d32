import type { Bus } from '@tollward/bus'
import { type AddressRange, contract } from '@tollward/contracts'
import { CallCapturedSchema, type CapturedCall } from '@tollward/contracts/sensor'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { Outbox } from './adapters/batch-publisher.ts'
import type { CallSettings } from './adapters/call-kernel.ts'
import { CallCapture } from './adapters/calls.ts'
import { type Metrics, sensorMetrics } from './metrics.ts'

/** Every process of this machine is captured, whatever else it is tested with at the time. */
const SETTINGS: CallSettings = {
  ...{ payloadBytesMax: 4096, cgroupBytesPerSecond: 0, cgroupBurstBytes: 0, sampleOneIn: 1 },
  ...{ clearPorts: [], ringBytes: 64 * 1024 * 1024 },
}

/** Calls as they are captured, assembled, published on a bus, and read from it again. */
export interface TestCapture extends AsyncDisposable {
  readonly capture: CallCapture
  readonly calls: readonly CapturedCall[]
  readonly metrics: Metrics
  /** Settles when all that was captured is on the bus. */
  readonly stop: () => Promise<void>
}

/** `node` is the name under which the calls are told. */
export async function startCapture(
  bus: Bus,
  settings: Partial<CallSettings> = {},
  { ranges = [], node = 'here' }: { ranges?: readonly AddressRange[]; node?: string } = {},
): Promise<TestCapture> {
  const nothing = () => ({})
  const metrics = sensorMetrics(new Registry(), { verdicts: nothing, events: nothing, blocks: nothing })
  const log = pino({ level: 'silent' })
  const outbox = new Outbox({ log })
  const capture = new CallCapture({ settings: { ...SETTINGS, ...settings }, ranges, node, outbox, metrics, log })
  const end = new AbortController()
  const running = [capture.run(end.signal), outbox.run(bus, end.signal)]
  const calls: CapturedCall[] = []
  const following = await bus.follow(contract(CallCapturedSchema), 'beginning', (batch) => {
    if (batch.node === node) calls.push(...batch.calls)
  })
  const stop = async () => {
    end.abort()
    await Promise.all(running)
  }
  const dispose = async () => {
    await stop()
    await following[Symbol.asyncDispose]()
  }
  return { capture, calls, metrics, stop, [Symbol.asyncDispose]: dispose }
}
