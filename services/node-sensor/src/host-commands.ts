import { readFile } from 'node:fs/promises'
import { DocumentError } from '@tollward/documents'
import { AppError } from '@tollward/errors'
import { readConfig } from '@tollward/runtime'
import { removeTable, whyNoNft } from './adapters/nft.ts'
import { whatIsMissing } from './adapters/object-file.ts'
import { read } from './adapters/rules-file.ts'
import { type Answer, answer } from './commands.ts'
import { HostConfigSchema } from './config.ts'
import { guardedFaults, readHostRules } from './domain/host-rules.ts'
import { type HostState, isCurrent, statusText } from './domain/host-status.ts'
import { NFT_TABLE } from './domain/nft.ts'
import { guardedOf } from './host.ts'

const WRONG = 1
const WRONG_USE = 2
/** As the init scripts of LSB say it of a program that is not running. */
const NOT_RUNNING = 3
const NOTHING_TO_SAY: Answer = { code: 0, text: '' }
const USAGE = `tollward-archsec             guards this host (as the service does)
tollward-archsec check FILE  says what is wrong with a rules file; 0: nothing. Without FILE, with the configured one and this machine
tollward-archsec status      how the sensor is; 0: well, 1: faulty, 3: it does not run. With -o json, all that it says
tollward-archsec detach      takes everything off that it put into the kernel
Settings are TOLLWARD_ variables of the environment; the service reads them from /etc/tollward-archsec/environment.`

/** Answers a command of tollward-archsec. Without one: code 0 and no text if the sensor can run. */
export async function answerHost(args: readonly string[], environment: NodeJS.ProcessEnv): Promise<Answer> {
  const [command, ...rest] = args
  try {
    // It looks at no other settings, so that a wrong one cannot keep programs on their hooks.
    if (command === 'detach' && rest.length === 0) return await detach(environment)
    const config = readConfig(HostConfigSchema, environment)
    if (command === undefined) return config.enforcer === 'kernel' ? await machine(config.bpfObject) : NOTHING_TO_SAY
    if (command === 'check' && rest.length <= 1) return await check(rest[0], config)
    if (command === 'status' && /^(-o json)?$/.test(rest.join(' ')))
      return await status(config.stateFile, rest.length > 0)
    return { code: /^(-h|--help|help)$/.test(command) ? 0 : WRONG_USE, text: USAGE }
  } catch (error) {
    if (error instanceof AppError)
      return { code: error instanceof DocumentError ? WRONG : WRONG_USE, text: error.message }
    throw error
  }
}

async function machine(bpfObject: string | undefined): Promise<Answer> {
  const missing = await whatIsMissing(bpfObject)
  if (missing.length === 0) return { code: 0, text: '' }
  return { code: WRONG_USE, text: `it needs ${missing.join('; it needs ')}` }
}

async function detach(environment: NodeJS.ProcessEnv): Promise<Answer> {
  const { code, text } = await answer('detach', environment)
  if (code !== 0 || (await whyNoNft()) !== undefined || !(await removeTable())) return { code, text }
  return { code, text: `${text}; removed the table ${NFT_TABLE} of nftables` }
}

type Config = ReturnType<typeof readConfig<typeof HostConfigSchema>>

async function check(file: string | undefined, config: Config): Promise<Answer> {
  const path = file ?? config.rulesFile
  const { text, changedAtMs } = await read(path)
  const { rules, blocks, sources } = readHostRules(text, path, changedAtMs, Date.now())
  const faults = guardedFaults(sources, guardedOf(config.guardedAddresses, config.managementPorts))
  if (faults.length > 0) throw new DocumentError(faults)
  const isMachine = file === undefined && config.enforcer === 'kernel'
  const able = isMachine ? await machine(config.bpfObject) : NOTHING_TO_SAY
  if (able.code !== 0) return able
  return { code: 0, text: `${path}: ${rules.size} rules and ${blocks.length} blocks in force` }
}

async function status(stateFile: string, asJson: boolean): Promise<Answer> {
  let text: string
  try {
    text = await readFile(stateFile, 'utf8')
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    const isThere = !(error instanceof Error && 'code' in error && error.code === 'ENOENT')
    if (isThere) return { code: WRONG_USE, text: `how the sensor is cannot be read: ${why}` }
    return { code: NOT_RUNNING, text: `no sensor runs (${why}); what one put into the kernel stays in force` }
  }
  const state = JSON.parse(text) as HostState
  const nowMs = Date.now()
  const well = (state.faults ?? []).length === 0 ? 0 : WRONG
  return { code: isCurrent(state, nowMs) ? well : NOT_RUNNING, text: asJson ? text.trim() : statusText(state, nowMs) }
}
