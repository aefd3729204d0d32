import { create } from '@bufbuild/protobuf'
import type { Bus } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { type SensorState, SensorStateSchema } from '@tollward/contracts/sensor'
import { AppError } from '@tollward/errors'
import type { AdminMethods } from './calls.ts'

/** The format of SensorState that this service reads. */
const STATE_FORMAT = 1
/** As node-sensor takes them. */
const NODE_NAME = /^[-._A-Za-z0-9]{1,63}$/

/** What the nodes' sensors said of themselves, in the bucket where each writes its own key. */
export function sensorMethods(bus: Bus): Pick<AdminMethods, 'listSensors'> {
  const bucket = bus.bucket(bucketContract(SensorStateSchema))
  return {
    listSensors: async ({ node }) => {
      if (node === '') {
        const states = (await bucket.entries()).map(({ key, value }) => summary(readState(key, value)))
        return { sensors: states.sort((a, b) => (a.node < b.node ? -1 : 1)) }
      }
      if (!NODE_NAME.test(node)) throw new AppError('invalid_argument', 'That is no name of a node.')
      const key = Buffer.from(node).toString('base64url')
      const entry = await bucket.get(key)
      if (!entry) throw new AppError('not_found', `No sensor of a node ${node} has said anything within the last hour.`)
      return { sensors: [readState(key, entry.value)] }
    },
  }
}

/** The name is the key's: no node is there twice, whatever a sensor says of itself. */
function readState(key: string, state: SensorState): SensorState {
  const node = Buffer.from(key, 'base64url').toString('utf8')
  if (state.format === STATE_FORMAT) return { ...state, node }
  const fault = `its sensor reports in format ${state.format}; this version reads ${STATE_FORMAT}`
  return create(SensorStateSchema, { format: state.format, node, reportedAt: state.reportedAt, faults: [fault] })
}

/** What a list has room for. */
function summary(state: SensorState): SensorState {
  const left = { programs: [], maps: [], counters: [], capabilities: [], rules: [], losses: [] }
  return { ...state, ...left, kernelDrops: [], captureTargets: [] }
}
