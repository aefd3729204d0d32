import { AppError } from '@tollward/errors'
import type { Command } from 'commander'
import { answering, type OutputOptions, written } from '../arguments.ts'
import { json } from '../output.ts'
import { sensorDetail, sensorLine, sensorRow, sensorText } from '../sensor-rows.ts'
import { type Surroundings, withSession } from '../session.ts'

const COLUMNS = ['node', 'state', 'mode', 'interfaces', 'kernel', 'version', 'reportedAt', 'detail']

/** `sensors`: how the kernel parts of the nodes are. */
export function addSensorCommands(program: Command, surroundings: Surroundings): void {
  const sensors = program.command('sensors').description('the sensors of the nodes, as each last said of itself')
  answering(sensors, 'list', 'show all', { isDefault: true }).action((options: OutputOptions) =>
    withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
      const found = await admin.listSensors({ node: '' }, call)
      const rows = found.sensors.map((sensor) => sensorRow(sensor, Date.now()))
      const shown = options.output === 'json' ? rows : rows.map(sensorLine)
      surroundings.out(written(shown, COLUMNS, 'no sensor has said anything within the last hour', options))
    }),
  )

  answering(sensors, 'show', 'show all of one: interfaces, programs and their cost, maps, rules, drops, losses')
    .argument('<node>')
    .action((node: string, { output }: OutputOptions) =>
      withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
        if (node === '') throw new AppError('invalid_argument', 'Give the name of a node.')
        const [sensor] = (await admin.listSensors({ node }, call)).sensors
        if (!sensor) throw new AppError('internal', 'admin-api answered without the sensor.')
        const detail = sensorDetail(sensor, Date.now())
        surroundings.out(output === 'json' ? json(detail) : sensorText(detail))
      }),
    )
}
