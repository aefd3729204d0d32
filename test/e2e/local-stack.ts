import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { startProcess, temporaryDirectory } from '@tollward/testkit'
import { ROOT } from '../checks/copy.ts'
import { Customer, clientDocument } from '../scenario/customer.ts'
import { tollward } from '../scenario/operator.ts'

const START_MAX_MS = 120_000
/** Its programs end one after the other, each within 12 s; a supervisor that is killed before leaves the kernel programs on `lo`. */
const STOP_MAX_MS = 180_000

/** The local stack, started as `npm start` starts it, with a state directory of its own. */
export interface LocalStack extends AsyncDisposable {
  readonly state: string
  readonly operatorFile: string
  readonly lines: readonly string[]
  /** Process id of a program by the last part of its path: a service's name, nats-server, bitcoind. */
  pidOf(program: string): number | undefined
  tollward<T = unknown>(args: readonly string[], input?: string): Promise<T>
  /** A client that is known but has not paid. */
  customer(name: string, from?: string): Promise<Customer>
  /** Pays for a pass for the plan `orders`, which the customer uses from now on. */
  buyPass(customer: Customer): Promise<void>
  /** A client that has bought a pass. */
  payingCustomer(name: string, from?: string): Promise<Customer>
  /** Ends the stack in an orderly way and gives its exit code. */
  stop(): Promise<number | NodeJS.Signals>
}

/** Starts the stack with arguments of `npm start` and waits until it says that it is ready. */
export async function startLocalStack(args: readonly string[] = []): Promise<LocalStack> {
  await using resources = new AsyncDisposableStack()
  const { path: state } = resources.use(await temporaryDirectory('tollward-stack-'))
  const main = join(ROOT, 'deploy/local/src/main.ts')
  const running = resources.use(
    await startProcess(process.execPath, [main, '--state', state, ...args], { cwd: ROOT, stopTimeoutMs: STOP_MAX_MS }),
  )
  await running.line(/is ready after/, START_MAX_MS)
  const operatorFile = join(state, 'operator.json')
  const command = <T>(args: readonly string[], input?: string) =>
    tollward<T>(args, input === undefined ? { operatorFile } : { operatorFile, input })
  const customer = async (name: string, from?: string) => {
    const [applied] = await command<{ clientSecret: string }[]>(['apply', '-f', '-'], clientDocument(name))
    const made = new Customer(name, applied?.clientSecret ?? '', from === undefined ? {} : { from })
    await made.getToken()
    return made
  }
  const buyPass = async (customer: Customer) => {
    const { uri } = await customer.getInvoice('orders')
    const { txid } = await command<{ txid: string }>(['regtest', 'pay', uri])
    await command(['regtest', 'mine', '1'])
    customer.txid = txid
  }
  const owned = resources.move()
  return {
    state,
    operatorFile,
    lines: running.lines,
    pidOf: (program) => programs(state).find(({ commandLine }) => commandLine.includes(program))?.pid,
    tollward: command,
    customer,
    buyPass,
    payingCustomer: async (name, from) => {
      const made = await customer(name, from)
      await buyPass(made)
      return made
    },
    stop: () => running.stop(),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

/** What still runs of a stack, known by the mark that its supervisor gives all its programs. */
export function programs(state: string): { pid: number; commandLine: string }[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      try {
        const environment = readFileSync(`/proc/${name}/environ`, 'utf8').split('\0')
        if (!environment.includes(`LOCAL_STACK=${state}`)) return []
        return [{ pid: Number(name), commandLine: readFileSync(`/proc/${name}/cmdline`, 'utf8').replaceAll('\0', ' ') }]
      } catch {
        // It ended while we looked.
        return []
      }
    })
}
