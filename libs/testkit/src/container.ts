import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { cp, mkdir, readFile, writeFile } from 'node:fs/promises'
import { request } from 'node:http'
import { homedir, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import type { Readable } from 'node:stream'
import { promisify } from 'node:util'
import { withLock } from '@tollward/acquire'
import { type ProgramRun, readLines, STOP_TIMEOUT_MS } from './process.ts'
import { temporaryDirectory } from './temporary-directory.ts'

const PING_TIMEOUT_MS = 1_000
const OWNER_LABEL = 'tollward.test.pid'

/** A program, to be run in a container that sees nothing but it, its libraries and some directories. */
export interface ContainerOptions {
  name: string
  program: string
  args: readonly string[]
  /** Directories that the container has at the same place, to write to as the test's own user. */
  directories: readonly string[]
  /** Its output is added to these. */
  lines: string[]
}

/**
 * Whether tests run servers in containers: where a Docker engine answers on a socket of this Linux machine, unless
 * TOLLWARD_TEST_DOCKER is `off`.
 */
export async function dockerAnswers(): Promise<boolean> {
  if (process.platform !== 'linux' || process.env.TOLLWARD_TEST_DOCKER === 'off') return false
  const configured = process.env.DOCKER_HOST
  const sockets =
    configured === undefined
      ? [
          '/var/run/docker.sock',
          `${process.env.XDG_RUNTIME_DIR}/docker.sock`,
          join(homedir(), '.docker/run/docker.sock'),
        ]
      : [configured].filter((host) => host.startsWith('unix://')).map((host) => host.slice('unix://'.length))
  for (const socketPath of sockets) if (await answersPing(socketPath)) return true
  return false
}

function answersPing(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const ping = request({ socketPath, path: '/_ping', timeout: PING_TIMEOUT_MS }, (response) => {
      response.resume()
      resolve(response.statusCode === 200)
    })
    // No socket, no engine behind it, or no permission to use it: there is no engine for us.
    ping.on('error', () => resolve(false))
    ping.on('timeout', () => ping.destroy(new Error('timeout')))
    ping.end()
  })
}

/**
 * Starts the program in a container of its own image, on the host's network. What was left by tests that were killed is
 * removed. Throws, with the way around, if the engine that answered cannot run it.
 */
export async function startInContainer(options: ContainerOptions): Promise<ProgramRun> {
  try {
    return await start(options)
  } catch (error) {
    const message = `a Docker engine answers, but ${options.name} did not start in a container; TOLLWARD_TEST_DOCKER=off runs it as a process`
    throw new Error(`${message}: ${error instanceof Error ? error.message : error}`, { cause: error })
  }
}

async function start({ name, program, args, directories, lines }: ContainerOptions): Promise<ProgramRun> {
  // Its helper container would remove ours if the test is killed, but its image may not be there to pull.
  process.env.TESTCONTAINERS_RYUK_DISABLED = 'true'
  const { GenericContainer, getContainerRuntimeClient, Wait } = await import('testcontainers')
  const { container: engine } = await getContainerRuntimeClient()
  await removeOrphans()

  const image = await imageOf(name, program)
  const started = await new GenericContainer(image)
    .withEntrypoint([program])
    .withCommand([...args])
    .withNetworkMode('host')
    .withUser(`${process.getuid?.()}:${process.getgid?.()}`)
    .withBindMounts(directories.map((directory) => ({ source: directory, target: directory, mode: 'rw' })))
    .withLabels({ [OWNER_LABEL]: String(process.pid) })
    .withLogConsumer((stream: Readable) => readLines(stream, lines, new Set()))
    // Its first word, be it a complaint; what it has to say further is for the caller to judge.
    .withWaitStrategy(Wait.forLogMessage(/./))
    .start()

  const container = engine.getById(started.getId())
  const exited = container.wait().then(({ StatusCode }: { StatusCode: number }) => StatusCode)
  let removed: Promise<unknown> | undefined
  const end = async (signal: NodeJS.Signals) => {
    const { State } = await container.inspect()
    if (State.Running) await container.kill({ signal })
    const how = await exited
    removed ??= container.remove({ v: true })
    await removed
    return how
  }
  const stop = async () => {
    const timer = setTimeout(() => void container.kill({ signal: 'SIGKILL' }), STOP_TIMEOUT_MS)
    try {
      return await end('SIGTERM')
    } finally {
      clearTimeout(timer)
    }
  }
  return { lines, exited, stop, kill: (signal = 'SIGKILL') => end(signal) }

  async function removeOrphans(): Promise<void> {
    for (const { Id, Labels } of await engine.list()) {
      const owner = Labels[OWNER_LABEL]
      if (owner !== undefined && !isAlive(Number(owner))) await engine.getById(Id).remove({ force: true, v: true })
    }
  }
}

/** The name of the image that holds just the program and its libraries, built if this engine hasn't got it. */
async function imageOf(name: string, program: string): Promise<string> {
  const { GenericContainer, getContainerRuntimeClient, ImageName } = await import('testcontainers')
  const digest = createHash('sha256')
    .update(await readFile(program))
    .digest('hex')
  const image = `tollward-test/${name}:${digest.slice(0, 16)}`
  const { image: images } = await getContainerRuntimeClient()
  const build = async () => {
    if (await images.exists(ImageName.fromString(image))) return
    await using context = await temporaryDirectory('tollward-image-')
    for (const file of [program, ...(await librariesOf(program))]) {
      const place = join(context.path, 'root', file)
      await mkdir(dirname(place), { recursive: true })
      await cp(file, place, { dereference: true })
    }
    await writeFile(join(context.path, 'Dockerfile'), 'FROM scratch\nCOPY root /\n')
    await GenericContainer.fromDockerfile(context.path).build(image, { deleteOnExit: false })
  }
  await withLock(join(tmpdir(), `tollward-image-${process.getuid?.()}.lock`), build)
  return image
}

/** The loader and libraries that a program is linked to: none of a static one. */
async function librariesOf(program: string): Promise<string[]> {
  const listed = await promisify(execFile)('ldd', [program]).catch((error: { stderr?: string }) => {
    if (error.stderr?.includes('not a dynamic executable')) return { stdout: '' }
    throw error
  })
  return listed.stdout.match(/\/\S+/g) ?? []
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM'
  }
}
