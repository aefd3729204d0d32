import assert from 'node:assert/strict'
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { statSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'

const run = promisify(execFile)
/** A blocked packet is not answered at all; 20 times what a handshake takes here. */
const CONNECT_TIMEOUT_MS = 250

const NODE_ADDRESS = '198.18.0.1'
export const CLIENT_ADDRESSES = ['198.18.0.2', '198.18.0.3'] as const
/** The guarded node's end of the cable. */
export const NODE_INTERFACE = 'node0'

const SERVER = `require('net').createServer((socket) => socket.end('served')).listen(PORT, '${NODE_ADDRESS}', () => console.log('ready'))`
const CLIENT = `const [, localAddress, port] = process.argv
const socket = require('net').connect({ host: '${NODE_ADDRESS}', port, localAddress })
socket.setTimeout(${CONNECT_TIMEOUT_MS}, () => { console.log('silence'); process.exit() })
socket.on('data', (data) => console.log(String(data))).on('error', (error) => console.log(error.code))`

/** Two network namespaces joined by a cable: a node with servers, and a client with two addresses. */
export class TestNetwork implements AsyncDisposable {
  readonly node: string
  readonly client: string
  readonly #children: ChildProcess[] = []

  constructor() {
    const id = `${process.pid}-${Math.trunc(performance.now())}`
    this.node = `tollward-node-${id}`
    this.client = `tollward-client-${id}`
  }

  async build(): Promise<this> {
    await run('ip', ['netns', 'add', this.node])
    await run('ip', ['netns', 'add', this.client])
    const pair = ['type', 'veth', 'peer', 'name', 'client0', 'netns', this.client]
    await run('ip', ['-n', this.node, 'link', 'add', NODE_INTERFACE, ...pair])
    await run('ip', ['-n', this.node, 'address', 'add', `${NODE_ADDRESS}/24`, 'dev', NODE_INTERFACE])
    for (const address of CLIENT_ADDRESSES)
      await run('ip', ['-n', this.client, 'address', 'add', `${address}/24`, 'dev', 'client0'])
    await run('ip', ['-n', this.node, 'link', 'set', NODE_INTERFACE, 'up'])
    await run('ip', ['-n', this.node, 'link', 'set', 'lo', 'up'])
    await run('ip', ['-n', this.client, 'link', 'set', 'client0', 'up'])
    return this
  }

  /** Starts a program on the node; gives its first line of output when it is there. Only the network is the namespace's own. */
  async start(...command: string[]): Promise<{ child: ChildProcess; line: string }> {
    const child = spawn('nsenter', [`--net=/run/netns/${this.node}`, process.execPath, ...command], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    this.#children.push(child)
    const lines = createInterface({ input: child.stdout })
    const [line] = await Promise.race([
      once(lines, 'line'),
      once(child, 'exit').then(() => ['ended before its first line']),
    ])
    return { child, line: String(line) }
  }

  async serve(port: number): Promise<void> {
    const { line } = await this.start('-e', SERVER.replace('PORT', String(port)))
    assert.equal(line, 'ready')
  }

  /** What a caller sees who connects from this address: `served`, `silence` or the name of an error. */
  async connect(localAddress: string, port: number, from: 'client' | 'node' = 'client'): Promise<string> {
    const command = [`--net=/run/netns/${this[from]}`, process.execPath, '-e', CLIENT, localAddress, String(port)]
    return (await run('nsenter', command)).stdout.trim()
  }

  /** Details of the node's interface, as `ip` shows them. */
  async interfaceDetails(): Promise<string> {
    return (await run('ip', ['-n', this.node, '-details', 'link', 'show', NODE_INTERFACE])).stdout
  }

  async queueingDisciplines(): Promise<string> {
    return (await run('tc', ['-n', this.node, 'qdisc', 'show', 'dev', NODE_INTERFACE])).stdout
  }

  /** As /proc/self/ns/net shows it to a process of the node. */
  get nodeInum(): number {
    return statSync(`/run/netns/${this.node}`).ino
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.#children) await end(child)
    for (const namespace of [this.node, this.client]) await run('ip', ['netns', 'delete', namespace])
  }
}

/** Ends a child process for sure, and waits until it has. */
export async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = once(child, 'exit')
  child.kill('SIGKILL')
  await ended
}
