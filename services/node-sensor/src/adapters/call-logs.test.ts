import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { acquireNginx } from '@tollward/acquire'
import { Binding, type CapturedCall, Side } from '@tollward/contracts/sensor'
import {
  eventually,
  freePort,
  goCallsProgram,
  requires,
  startNatsServer,
  startProcess,
  temporaryDirectory,
} from '@tollward/testkit'
import { makeCertificate, needsProbes, THIS_NODE } from '../test-calls.ts'
import { startCapture } from '../test-capture.ts'
import { LOGGED } from '../test-logged.ts'
import { decidingBus } from '../test-node.ts'

const skip = needsProbes || (await requires({ root: true, tools: ['nats-server', 'nginx', 'curl', 'python3', 'go'] }))
/** `npm run soak -- calls` has more rounds; one begins when what was asked before is told: this is about what is told, not how fast. */
const ROUNDS = Number(process.env.TOLLWARD_SOAK_TIMES ?? 1)
const ROUND_CALLS = 3000
const LOAD_TIMEOUT_MS = 180_000
/** Of all calls, as many are told at least. */
const SEEN_SHARE_MIN = 0.999
const CURL_PROCESSES = 4
/** Without anything new for so long, nothing more comes. */
const QUIET_MS = 2000
const SIZES = [0, 1000, 20_000]
/** The ends of two chunks, the size of the second, and the last chunk: bytes of which nobody can tell that they are no content, unless they are seen. */
const CHUNK_FRAMING_BYTES_MAX = 16n

interface Servers {
  readonly nginx: number
  readonly https: number
  readonly h2: number
  readonly go: number
}

/** Files of each size, and answers of each kind; what is asked and answered is counted without heads. */
function nginxConfiguration(directory: string, port: number, { key, cert }: Record<'key' | 'cert', string>): string {
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (name) => `${name}_temp_path ${directory}/${name};`,
  )
  return `daemon off; user root; worker_processes 2; pid ${directory}/pid; events {}
http { ${temporary.join(' ')} log_format call 'call $request_method $request_uri $status $content_length- $body_bytes_sent $remote_port';
access_log ${directory}/access.log call; server { listen 127.0.0.1:${port} ssl http2; keepalive_requests 1000000; root ${directory};
ssl_certificate ${cert}; ssl_certificate_key ${key};
location ~ ^/f/(?<size>\\d+)/ { try_files /size-$size =404; }
location /p/ { return 201 "made"; }
location /empty/ { return 204; } } }`
}

async function isAccepting(port: number): Promise<boolean> {
  const socket = connect({ port, host: '127.0.0.1' })
  await once(socket, 'connect')
  socket.destroy()
  return true
}

/** Several processes of curl, each with a connection for all that it asks; with HTTP/2, some of it at once. */
async function askByCurl(port: number, version: 'http1.1' | 'http2', size: number, calls: number): Promise<void> {
  const each = Math.ceil(calls / CURL_PROCESSES)
  const atOnce = version === 'http2' ? ['-Z', '--parallel-max', '4'] : []
  const processes = Array.from({ length: CURL_PROCESSES }, async (_, index) => {
    const url = `https://127.0.0.1:${port}/f/${size}/[${index * each}-${(index + 1) * each - 1}]`
    await using curl = await startProcess('curl', ['-sk', ...atOnce, `--${version}`, '-o', '/dev/null', url])
    assert.equal(await curl.exited, 0)
  })
  await Promise.all(processes)
}

async function askBy(command: string, args: readonly (string | number)[]): Promise<void> {
  await using client = await startProcess(command, args.map(String))
  assert.equal(await client.exited, 0)
}

async function askAll({ nginx, https, h2, go }: Servers): Promise<void> {
  const goClient = await goCallsProgram('plain')
  await Promise.all([
    askByCurl(nginx, 'http1.1', 1000, 600),
    askBy(process.execPath, ['-e', LOGGED.client, 'https', https, 500]),
  ])
  await Promise.all([askByCurl(nginx, 'http2', 1000, 500), askBy(goClient, ['ask-http1', go, 500, 5])])
  await Promise.all([
    askBy('python3', ['-c', LOGGED.pythonClient, nginx, 4, 500]),
    askBy(goClient, ['ask-h2', go, 200, 4]),
    askBy(process.execPath, ['-e', LOGGED.h2Client, h2, 200]),
  ])
}

/** As servers log calls, with the port at which they were asked. */
function lineOf(call: CapturedCall, responseBytes = call.responseBytes): string {
  const { localPort, method, path, status, requestBytes, peerPort, grpcStatus } = call
  const line = `${localPort} call ${method} ${path} ${status} ${requestBytes} ${responseBytes} ${peerPort}`
  return grpcStatus === undefined ? line : `${line} ${grpcStatus}`
}

/** Told as partial, with the framing of chunks whose ends were not seen counted as content: the line as logged. */
function lineWithoutFraming(call: CapturedCall, logged: ReadonlySet<string>): string {
  const isInChunks = call.path.startsWith('/https/') && call.method === 'POST'
  for (let framing = 0n; call.partial && isInChunks && framing <= CHUNK_FRAMING_BYTES_MAX; framing++) {
    const line = lineOf(call, call.responseBytes - framing)
    if (logged.has(line)) return line
  }
  return lineOf(call)
}

/** How many of each line. */
function countsOf(lines: readonly string[]): Map<string, number> {
  const counts = new Map<string, number>()
  for (const line of lines) counts.set(line, (counts.get(line) ?? 0) + 1)
  return counts
}

/** Lines that the others have not, or not so often. */
function beyond(lines: readonly string[], others: readonly string[]): string[] {
  const counts = countsOf(others)
  return lines.filter((line) => {
    const left = counts.get(line) ?? 0
    counts.set(line, left - 1)
    return left <= 0
  })
}

/** As many as are wanted have come, or no more do. */
async function isQuiet(count: () => number, wanted: number): Promise<void> {
  let quiet = { count: -1, sinceMs: performance.now() }
  await eventually(
    () => {
      const now = count()
      if (now !== quiet.count) quiet = { count: now, sinceMs: performance.now() }
      return now >= wanted || performance.now() - quiet.sinceMs > QUIET_MS
    },
    { what: 'all calls are told, or no more are', timeoutMs: LOAD_TIMEOUT_MS, intervalMs: 100 },
  )
}

test('calls of curl, Node, Python and Go are told as the logs of nginx, Node and Go have them, each with its connection', {
  skip,
}, async (context) => {
  await using directory = await temporaryDirectory()
  await using nats = await startNatsServer()
  await using bus = await decidingBus(nats.url)
  const files = await makeCertificate(directory.path)
  for (const size of SIZES) await writeFile(join(directory.path, `size-${size}`), Buffer.alloc(size, 'x'))
  await using node = await startProcess(process.execPath, ['-e', LOGGED.server, files.key, files.cert])
  const goPath = await goCallsProgram('stripped')
  await using go = await startProcess(goPath, ['serve', files.key, files.cert])
  const nginxPort = await freePort()
  const configuration = join(directory.path, 'nginx.conf')
  await writeFile(configuration, nginxConfiguration(directory.path, nginxPort, files))
  const tool = await acquireNginx()
  const nginxArgs = [...tool.args, '-p', directory.path, '-c', configuration, '-e', 'stderr']
  await using nginx = await startProcess(tool.command, nginxArgs)
  await eventually(() => isAccepting(nginxPort), { what: 'nginx accepts' })
  const portIn = async (line: Promise<string>) => Number((await line).split(' ')[1])
  const servers: Servers = {
    nginx: nginxPort,
    https: await portIn(node.line(/^tls \d/)),
    h2: await portIn(node.line(/^h2 \d/)),
    go: await portIn(go.line(/^port \d/)),
  }
  const ports = Object.values(servers)
  await using captured = await startCapture(bus)
  const { capture, calls, metrics, stop } = captured
  await eventually(
    () =>
      [THIS_NODE, /libssl/, /\/stripped$/].every((path) => capture.targets.some((target) => path.test(target.path))),
    { what: 'Node, OpenSSL and the Go program are probed', timeoutMs: LOAD_TIMEOUT_MS },
  )
  // The Go client asks once for nothing, which its server does not log. A call whose answer was missed is not told.
  const served = () =>
    calls.filter(
      ({ side, localPort, path, partial, status }) =>
        side === Side.SERVER && ports.includes(localPort) && path !== '/first' && !(partial && status === 0),
    )
  let logged: string[] = []
  for (let round = 1; round <= ROUNDS; round++) {
    await askAll(servers)
    logged = await eventually(
      async () => {
        const lines = await logsOf(directory.path, servers, node.lines, go.lines)
        return lines.length >= ROUND_CALLS * round && lines
      },
      { what: 'all calls are logged', timeoutMs: LOAD_TIMEOUT_MS },
    )
    await isQuiet(() => served().length, logged.length)
  }
  const kernel = capture.counts()
  await stop()
  assert.equal(capture.fault(), undefined)

  const lines = new Set(logged)
  const told = served().map((call) => lineWithoutFraming(call, lines))
  const framed = served().filter(
    (call) => !lines.has(lineOf(call)) && lines.has(lineWithoutFraming(call, lines)),
  ).length
  const wrong = beyond(told, logged)
  const missing = beyond(logged, told)
  const lost = (await metrics.callsLost.get()).values
  const figures = { logged: logged.length, told: told.length, connections: connectionsOf(logged), framed, lost, kernel }
  context.diagnostic(JSON.stringify(figures))
  assert.deepEqual(wrong.slice(0, 10), [], `told otherwise than logged; beside them ${missing.slice(0, 10).join(', ')}`)
  assert(missing.length <= logged.length * (1 - SEEN_SHARE_MIN), `${missing.length} of ${logged.length} are not told`)
  const losses = lost.reduce((sum, { value }) => sum + value, 0) + (kernel.ringFull ?? 0) + (kernel.tableFull ?? 0)
  assert(losses >= missing.length, `${missing.length} are missing, and ${losses} losses were counted`)
  assert(served().every(({ binding }) => binding !== Binding.NONE))
  assert(nginx.pid > 0)
})

async function logsOf(
  directory: string,
  { nginx, https, h2, go }: Servers,
  nodeLines: readonly string[],
  goLines: readonly string[],
): Promise<string[]> {
  const access = await readFile(join(directory, 'access.log'), 'latin1')
  const ofNginx = access
    .split('\n')
    .filter((line) => line !== '')
    // nginx says "-" of a question that does not say its length.
    .map((line) => `${nginx} ${line.replace(/ -- /, ' 0 ').replace(/(\d)- /, '$1 ')}`)
  const ofNode = calledIn(nodeLines).map((line) => `${line.includes('/shop.Orders/') ? h2 : https} ${line}`)
  return [...ofNginx, ...ofNode, ...calledIn(goLines).map((line) => `${go} ${line}`)]
}

function calledIn(lines: readonly string[]): string[] {
  return lines.filter((line) => line.startsWith('call '))
}

/** Server and client port. */
function connectionsOf(lines: readonly string[]): number {
  const parts = lines.map((line) => line.split(' '))
  return new Set(parts.map(([server, , , , , , , client]) => `${server} ${client}`)).size
}
