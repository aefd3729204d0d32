import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { type Chunk, compile } from '@tollward/libbpf'
import { eventually, requires } from '@tollward/testkit'
import { pino } from 'pino'
import { type CallFeatures, type CallKernel, type CallSettings, loadCalls } from './adapters/call-kernel.ts'
import { CallRing } from './adapters/call-ring.ts'
import { CallTargets } from './adapters/call-targets.ts'

const BPF_DIRECTORY = join(import.meta.dirname, '../../../bpf')
const READ_INTERVAL_MS = 5
/** Machines that run all tests at once are slow. */
const PATIENCE_MS = 30_000

/** For node:test's option `skip`. */
export const needsProbes: string | false = await requires({
  root: true,
  tools: ['clang', 'make', 'openssl'],
  files: ['/usr/include/bpf/bpf_helpers.h', '/sys/kernel/btf/vmlinux', '/sys/bus/event_source/devices/uprobe'],
})

/** A chunk whose bytes are kept. */
export interface KeptChunk extends Omit<Chunk, 'bytes'> {
  readonly text: string
}

const SETTINGS: CallSettings = {
  payloadBytesMax: 4096,
  cgroupBytesPerSecond: 0,
  cgroupBurstBytes: 0,
  sampleOneIn: 1,
  clearPorts: [],
  ringBytes: 4 * 1024 * 1024,
}

/** The real programs and probes, and what they captured of these processes; other tests make calls at the same time. */
export class TestCalls implements AsyncDisposable {
  readonly kernel: CallKernel
  readonly targets: CallTargets
  readonly chunks: KeptChunk[] = []
  readonly #ring: CallRing
  readonly #stop = new AbortController()
  readonly #running: Promise<void>
  #timer: NodeJS.Timeout | undefined
  #wanted: (chunk: Omit<Chunk, 'bytes'>) => boolean = () => true

  constructor(kernel: CallKernel, libraries: readonly string[], scanIntervalMs?: number) {
    this.kernel = kernel
    this.#ring = new CallRing(kernel.object)
    const log = pino({ level: 'silent' })
    this.targets = new CallTargets({ kernel, libraries, log, ...(scanIntervalMs !== undefined && { scanIntervalMs }) })
    this.#running = this.targets.run(this.#stop.signal)
    this.resume()
  }

  /** Keeps only such chunks, of those so far too. */
  keep(wanted: (chunk: Omit<Chunk, 'bytes'>) => boolean): void {
    this.#wanted = wanted
    const kept = this.chunks.filter(wanted)
    this.chunks.splice(0, this.chunks.length, ...kept)
  }

  /** Leaves what is captured in the ring until `resume`. */
  pause(): void {
    clearInterval(this.#timer)
  }

  resume(): void {
    this.#timer = setInterval(() => this.read(), READ_INTERVAL_MS)
  }

  read(): void {
    this.#ring.read((chunk) => {
      if (!this.#wanted(chunk)) return
      const { bytes, ...rest } = chunk
      this.chunks.push({ ...rest, text: Buffer.from(bytes).toString('latin1') })
    })
  }

  /** Settles once the file is probed. */
  async probed(path: RegExp): Promise<void> {
    await eventually(() => this.targets.targets.some((target) => path.test(target.path)), {
      what: `${path} is probed`,
      timeoutMs: PATIENCE_MS,
    })
  }

  /** The chunks so far, once they fulfil the condition. */
  async until(what: string, condition: (chunks: readonly KeptChunk[]) => boolean): Promise<readonly KeptChunk[]> {
    await eventually(() => condition(this.chunks), { what, intervalMs: 50, timeoutMs: PATIENCE_MS })
    return this.chunks
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer)
    this.#stop.abort()
    await this.#running
    await this.targets[Symbol.asyncDispose]()
    this.#ring[Symbol.dispose]()
    this.kernel[Symbol.dispose]()
  }
}

/** The program that runs this test and what it starts, and no other Node that the machine runs meanwhile, as npm's own. */
export const THIS_NODE = new RegExp(`^${RegExp.escape(process.execPath)}$`)

/** Path of the compiled programs of calls. */
export function compileCalls(): Promise<string> {
  return compile(BPF_DIRECTORY, 'build/calls.bpf.o')
}

/** Programs on their tracepoints, probes on every TLS library that is mapped. */
export async function startCalls(
  settings: Partial<CallSettings> = {},
  {
    libraries = [],
    scanIntervalMs,
    features,
  }: { libraries?: readonly string[]; scanIntervalMs?: number; features?: CallFeatures } = {},
): Promise<TestCalls> {
  const kernel = loadCalls(await compileCalls(), { ...SETTINGS, ...settings }, pino({ level: 'silent' }), features)
  return new TestCalls(kernel, libraries, scanIntervalMs)
}

/** A key and a certificate for localhost. */
export async function makeCertificate(directory: string): Promise<{ key: string; cert: string }> {
  const key = join(directory, 'key.pem')
  const cert = join(directory, 'cert.pem')
  const ec = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
  await promisify(execFile)('openssl', [
    ...['req', '-x509', ...ec, '-keyout', key, '-out', cert, '-days', '2', '-subj', '/CN=localhost'],
  ])
  return { key, cert }
}

/** How many calls are tied to the connection that really carried them: each says the port of its client, as `port=…`. */
export interface Tally {
  right: number
  wrong: number
  unbound: number
}

/** Compares what chunks of a server at this port, or of its clients, say of themselves with the addresses that they have. */
export function tally(chunks: readonly KeptChunk[], serverPort: number): Tally {
  const found = { right: 0, wrong: 0, unbound: 0 }
  for (const { text, addresses } of chunks) {
    const said = /port=(\d+)/.exec(text)?.[1]
    if (said === undefined) continue
    if (!addresses) found.unbound += 1
    else if (addresses.localPort === serverPort) found[addresses.peerPort === Number(said) ? 'right' : 'wrong'] += 1
    else found[addresses.peerPort === serverPort && addresses.localPort === Number(said) ? 'right' : 'wrong'] += 1
  }
  return found
}

/** Programs that make calls; each prints one line `port …` or `done …`. */
export const PROGRAMS = {
  nodeServer: `
const fs = require('fs'), [, key, cert] = process.argv
const server = require('https').createServer({ key: fs.readFileSync(key), cert: fs.readFileSync(cert) }, (request, response) => {
  response.setHeader('x-client', 'port=' + request.socket.remotePort)
  response.end('answer to ' + request.url)
})
server.keepAliveTimeout = 60000
server.listen(0, '127.0.0.1', () => console.log('port', server.address().port))`,
  nodeClient: `
const [, port, connections, calls, perConnection] = process.argv.map(Number)
const open = (left) => new Promise((resolve, reject) => {
  let made = 0
  const socket = require('tls').connect({ port, host: '127.0.0.1', rejectUnauthorized: false, servername: 'localhost' })
  const ask = () => socket.write('GET /port=' + socket.localPort + '/' + made + ' HTTP/1.1\\r\\nhost: localhost\\r\\n\\r\\n')
  socket.on('secureConnect', ask).on('error', reject).on('close', () => resolve(left - made))
  let text = ''
  socket.on('data', (data) => {
    text += data
    if (!text.includes('answer to /port=' + socket.localPort + '/' + made)) return
    text = ''
    made += 1
    if (made === Math.min(left, perConnection)) socket.end()
    else ask()
  })
})
const one = async () => { for (let left = calls; left > 0; ) left = await open(left) }
Promise.all(Array.from({ length: connections }, one)).then(() => console.log('done', connections * calls))`,
  pythonThreads: `
import ssl, sys, threading, http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = ('answer to ' + self.path).encode()
        self.send_response(200)
        self.send_header('x-client', 'port=%d' % self.client_address[1])
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[1])
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
print('port', server.server_address[1], flush=True)
server.serve_forever()`,
  pythonAsyncio: `
import asyncio, ssl, sys
key, cert, upstream_port = sys.argv[1], sys.argv[2], int(sys.argv[3])
server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server_context.load_cert_chain(cert, key)
client_context = ssl._create_unverified_context()
pool = []
async def request(reader):
    head = await reader.readuntil(b'\\r\\n\\r\\n')
    return head.split()[1].decode()
async def answer(writer, path):
    body = ('answer to ' + path).encode()
    port = writer.get_extra_info('peername')[1]
    writer.write(b'HTTP/1.1 200 OK\\r\\nx-client: port=%d\\r\\ncontent-length: %d\\r\\n\\r\\n%s' % (port, len(body), body))
    await writer.drain()
async def direct(reader, writer):
    try:
        while True: await answer(writer, await request(reader))
    except (asyncio.IncompleteReadError, ConnectionError): pass
    finally: writer.close()
turn = 0
async def front(reader, writer):
    global turn
    try:
        while True:
            path = await request(reader)
            turn += 1
            fresh = not pool or turn % 10 < 3
            r, w = await asyncio.open_connection('127.0.0.1', upstream_port, ssl=client_context) if fresh else pool.pop()
            port = w.get_extra_info('sockname')[1]
            w.write(b'GET /port=%d/up HTTP/1.1\\r\\nhost: localhost\\r\\n\\r\\n' % port)
            text = b''
            while b'answer to /port=%d/up' % port not in text: text += await r.read(65536)
            if len(pool) < 8: pool.append((r, w))
            else: w.close()
            await answer(writer, path)
    except (asyncio.IncompleteReadError, ConnectionError): pass
    finally: writer.close()
async def main():
    tls = await asyncio.start_server(direct, '127.0.0.1', 0, ssl=server_context)
    plain = await asyncio.start_server(front, '127.0.0.1', 0)
    print('port', tls.sockets[0].getsockname()[1], plain.sockets[0].getsockname()[1], flush=True)
    await asyncio.gather(tls.serve_forever(), plain.serve_forever())
asyncio.run(main())`,
  pythonBuffers: `
import socket, ssl, sys
port, rounds = int(sys.argv[1]), int(sys.argv[2])
context = ssl._create_unverified_context()
class Tls:
    def __init__(self):
        self.socket = socket.create_connection(('127.0.0.1', port))
        self.port = self.socket.getsockname()[1]
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname='localhost')
        while True:
            try: self.tls.do_handshake(); break
            except ssl.SSLWantReadError:
                self.flush(); self.receive()
        self.flush()
    def flush(self): self.socket.sendall(self.outgoing.read())
    def receive(self): self.incoming.write(self.socket.recv(65536))
    def ask(self):
        self.tls.write(b'GET /port=%d HTTP/1.1\\r\\nhost: localhost\\r\\n\\r\\n' % self.port)
        self.flush()
    def begin(self):
        while True:
            try: return self.tls.read(45)
            except ssl.SSLWantReadError: self.receive()
    def rest(self): return self.tls.read(65536)
listener = socket.create_server(('127.0.0.1', 0))
text = socket.create_connection(listener.getsockname())
other, _ = listener.accept()
one, two = Tls(), Tls()
for _ in range(rounds):
    one.ask(); two.ask()
    one.begin(); other.sendall(b'text'); text.recv(4); one.rest()
    two.begin(); one.ask(); one.begin(); one.rest(); two.rest()
    one.ask(); two.ask(); one.receive(); two.receive()
    one.begin(); two.begin(); one.rest(); two.rest()
print('done', rounds, flush=True)`,
  pythonConfined: `
import ctypes, ssl, struct, sys, urllib.request
libc = ctypes.CDLL(None, use_errno=True)
# Load the number of the system call; that of a return from a probe, 335, kills the process; everything else is allowed.
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 335), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))
program = struct.pack('HxxxxxxQ', len(steps), ctypes.addressof(code))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0) == 0
context = ssl._create_unverified_context()
for _ in range(20): urllib.request.urlopen('https://127.0.0.1:%s/confined' % sys.argv[1], context=context).read()
print('done', flush=True)`,
  /** Of any library with OpenSSL's interface, by its path, behind the paths of what it needs. */
  libraryClient: `
import ctypes, socket, sys
(port, connections, calls), libraries = map(int, sys.argv[1:4]), sys.argv[4:]
tls, pointer = [ctypes.CDLL(library) for library in libraries][-1], ctypes.c_void_p
for name in ('TLS_method', 'SSL_CTX_new', 'SSL_new'): getattr(tls, name).restype = pointer
context = pointer(tls.SSL_CTX_new(pointer(tls.TLS_method())))
buffer = ctypes.create_string_buffer(65536)
for _ in range(connections):
    with socket.create_connection(('127.0.0.1', port)) as connection:
        ssl = pointer(tls.SSL_new(context))
        tls.SSL_set_fd(ssl, connection.fileno())
        assert tls.SSL_connect(ssl) == 1
        for made in range(calls):
            path, text = b'/port=%d/%d' % (connection.getsockname()[1], made), b''
            question = b'GET %s HTTP/1.1\\r\\nhost: localhost\\r\\n\\r\\n' % path
            assert tls.SSL_write(ssl, question, len(question)) == len(question)
            while b'answer to ' + path not in text:
                count = tls.SSL_read(ssl, buffer, len(buffer))
                assert count > 0
                text += buffer.raw[:count]
        tls.SSL_shutdown(ssl)
        tls.SSL_free(ssl)
print('done', connections * calls, flush=True)`,
  plainClient: `
const [, port, connections, calls] = process.argv.map(Number)
const one = () => new Promise((resolve, reject) => {
  let made = 0, text = ''
  const socket = require('net').connect({ port, host: '127.0.0.1' })
  const ask = () => socket.write('GET /plain/' + made + ' HTTP/1.1\\r\\nhost: localhost\\r\\n\\r\\n')
  socket.on('connect', ask).on('error', reject).on('close', resolve).on('data', (data) => {
    text += data
    if (!text.includes('answer to /plain/' + made)) return
    text = ''
    if (++made === calls) socket.end()
    else ask()
  })
})
Promise.all(Array.from({ length: connections }, one)).then(() => console.log('done', connections * calls))`,
} as const
