import { buildGoProgram, type GoProgram } from './go-module.ts'
import { type AcquireOptions, acquisition, privateCopy, type Tool } from './tool.ts'

const VERSION = '2.2.1'
const PROGRAM: GoProgram = {
  package: 'github.com/summerwind/h2spec/cmd/h2spec',
  versions: {
    'github.com/summerwind/h2spec': `v${VERSION}+incompatible`,
    'github.com/fatih/color': 'v1.16.0',
    'github.com/spf13/cobra': 'v1.8.0',
    'golang.org/x/net': 'v0.17.0',
  },
}

/** How to run h2spec, which asks an HTTP/2 server for what RFC 9113's predecessor and RFC 7541 demand, for tests. */
export async function acquireH2spec(options: AcquireOptions = {}): Promise<Tool> {
  const wanted = acquisition(options)
  return await privateCopy(wanted, 'h2spec', async (folder) => {
    await buildGoProgram(options, wanted, PROGRAM, { folder, name: 'h2spec' })
    return { command: '{folder}/h2spec', args: [], version: VERSION, from: 'built by the Go toolchain' }
  })
}
