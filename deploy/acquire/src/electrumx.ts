import { installWheels } from './python-wheel.ts'
import { type AcquireOptions, type Acquisition, acquisition, privateCopy, run, type Tool } from './tool.ts'

/** ElectrumX as its present authors publish it, and the store that it keeps its index in. */
const VERSION = '1.20.0'
const WHEELS = [`e-x==${VERSION}`, 'plyvel==1.5.1']

const RUN_SERVER = `
import sys
sys.path.insert(0, '{folder}')
from electrumx.cli.electrumx_server import main
main()
`

/** How to run ElectrumX, a server of the Electrum protocol, for tests. Throws AcquireError if it cannot be had. */
export async function acquireElectrumx(options: AcquireOptions = {}): Promise<Tool> {
  const wanted = acquisition(options)
  return await privateCopy(wanted, 'electrumx', (folder) => fromWheels(options, wanted, folder))
}

async function fromWheels(options: AcquireOptions, wanted: Acquisition, folder: string): Promise<Tool> {
  const command = await installWheels(options, wanted, WHEELS, folder)
  const imported = `import sys; sys.path.insert(0, '${folder}'); import electrumx, plyvel`
  await run(command, ['-c', imported])
  return { command, args: ['-c', RUN_SERVER], version: VERSION, from: 'Python wheels' }
}
