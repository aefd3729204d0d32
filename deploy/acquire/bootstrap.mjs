// Runs a TypeScript program of this repository, from a fresh clone, with nothing installed but Node 20 or newer:
//   node deploy/acquire/bootstrap.mjs <entry.ts> [arguments…]
// Plain JavaScript without dependencies: it installs them, Node 24 among them, and goes on in that Node.
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const NODE_MAJOR_MIN = 20
const PLATFORMS = ['linux', 'darwin']
/** How often a line says that the installation goes on, where it cannot be shown in place. */
const PROGRESS_INTERVAL_MS = 3_000
const PROGRESS_INTERVAL_TERMINAL_MS = 200
/** A process that a signal ends exits with this and the signal's number, as shells report it. */
const SIGNAL_EXIT_CODE = 128

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..')
const node = join(root, 'node_modules/.bin/node')
const stamp = join(root, '.tollward/installed')

/** The child that signals go to: npm while installing, then the program. */
let child
let stoppedBy
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => {
    stoppedBy = signal
    // From a terminal the child gets Ctrl-C a second time, directly; whatever runs here must not mind.
    if (child) child.kill(signal)
    else exitAs({ signal })
  })
}

const [entry, ...args] = process.argv.slice(2)
const obstacle = whyNot()
if (obstacle) {
  process.stderr.write(`${obstacle}\n`)
  process.exitCode = 1
} else if (isInstalled() || (await install())) {
  exitAs(stoppedBy ? { signal: stoppedBy } : await runToEnd(node, [resolve(root, entry), ...args], 'inherit'))
}

function whyNot() {
  if (!entry) return 'usage: node deploy/acquire/bootstrap.mjs <entry.ts> [arguments…]'
  if (Number.parseInt(process.versions.node, 10) < NODE_MAJOR_MIN) {
    return `Tollward needs Node ${NODE_MAJOR_MIN} or newer to start with; this is Node ${process.versions.node}. Install a newer one (https://nodejs.org) and try again.`
  }
  if (!PLATFORMS.includes(process.platform)) {
    return `Tollward runs on Linux, and on macOS without the sensor; this is ${process.platform}. On Windows, use WSL 2.`
  }
  return undefined
}

/** Installs the dependencies, once, however many programs start at the same time; true when they are there. */
async function install() {
  // Loaded late, so that an old Node gets as far as the sentence above.
  const { withLock } = await import('./src/lock.mjs')
  const onWait = (holder) => process.stderr.write(`Process ${holder} is installing the dependencies; waiting for it.\n`)
  return await withLock(
    join(root, '.tollward/install.lock'),
    async () => {
      if (isInstalled()) return true
      const outcome = await npmInstall()
      if (outcome.code !== 0) {
        exitAs(outcome)
        process.stderr.write('npm install failed; its reasons stand above.\n')
        return false
      }
      if (!existsSync(node)) {
        process.stderr.write(
          `npm install left no ${node}: the install script of the package "node" must be allowed to run (npm's setting ignore-scripts).\n`,
        )
        process.exitCode = 1
        return false
      }
      mkdirSync(dirname(stamp), { recursive: true })
      writeFileSync(stamp, fingerprint())
      return true
    },
    { onWait },
  )
}

async function npmInstall() {
  const start = Date.now()
  const say = () => {
    const line = `Installing dependencies with npm (once): ${Math.round((Date.now() - start) / 1_000)} s`
    process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${line}` : `${line}\n`)
  }
  say()
  const timer = setInterval(say, process.stderr.isTTY ? PROGRESS_INTERVAL_TERMINAL_MS : PROGRESS_INTERVAL_MS)
  try {
    // Under `npm start` the same npm goes on; its path is a JavaScript file.
    const npm = process.env.npm_execpath ? [process.execPath, process.env.npm_execpath] : ['npm']
    const wanted = ['install', '--no-audit', '--no-fund', '--include=dev']
    return await runToEnd(npm[0], [...npm.slice(1), ...wanted], 'pipe')
  } finally {
    clearInterval(timer)
    if (process.stderr.isTTY) process.stderr.write('\n')
  }
}

/** Runs a program in the repository's root until it ends; with `pipe`, its output is kept instead of shown. */
function runToEnd(command, commandArgs, stdio) {
  return new Promise((resolved) => {
    let output = ''
    child = spawn(command, commandArgs, { cwd: root, stdio: stdio === 'inherit' ? stdio : ['ignore', 'pipe', 'pipe'] })
    for (const stream of [child.stdout, child.stderr]) {
      if (!stream) continue
      stream.on('data', (chunk) => {
        output += chunk
      })
    }
    child.on('error', (error) => resolved({ code: 1, signal: null, output: `${command}: ${error.message}` }))
    child.on('close', (code, signal) => resolved({ code, signal, output }))
  }).finally(() => {
    child = undefined
  })
}

/** Ends like the child ended: with its code, or by its signal. */
function exitAs({ code, signal, output }) {
  if (signal) {
    process.exitCode = SIGNAL_EXIT_CODE + constants.signals[signal]
    process.removeAllListeners(signal)
    process.kill(process.pid, signal)
  } else {
    if (code !== 0 && output) process.stderr.write(`${output}\n`)
    process.exitCode = code
  }
}

function isInstalled() {
  return existsSync(node) && existsSync(stamp) && readFileSync(stamp, 'utf8') === fingerprint()
}

/** Changes with whatever decides what npm installs: all package.json files, the lock file, and the platform. */
function fingerprint() {
  const { workspaces } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const folders = workspaces.flatMap((workspace) =>
    workspace.endsWith('/*')
      ? readdirSync(join(root, dirname(workspace))).map((name) => join(dirname(workspace), name))
      : [workspace],
  )
  const files = ['package.json', 'package-lock.json', ...folders.map((folder) => join(folder, 'package.json'))]
  const hash = createHash('sha256').update(`${process.platform} ${process.arch}`)
  for (const file of files.sort()) {
    const path = join(root, file)
    if (existsSync(path)) hash.update(`\0${file}\0`).update(readFileSync(path))
  }
  return `${hash.digest('hex')}\n`
}
