import process from 'node:process'
import { runMain } from '@tollward/runtime'
import { HostConfigSchema } from './config.ts'
import { runHost } from './host.ts'
import { answerHost } from './host-commands.ts'

const args = process.argv.slice(2)
let onHangup: () => void = () => undefined
if (args.length === 0) process.on('SIGHUP', () => onHangup())
const { code, text } = await answerHost(args, process.env)
if (args.length === 0 && code === 0)
  await runMain({
    ...{ name: 'tollward-archsec', config: HostConfigSchema, process },
    run: (context) =>
      runHost({
        ...context,
        onHangup: (listener) => {
          onHangup = listener
        },
      }),
  })
if (text !== '') process[code === 0 || args[0] === 'status' ? 'stdout' : 'stderr'].write(`${text}\n`)
process.exit(code)
