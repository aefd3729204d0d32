#!/usr/bin/env node
// The command, for any Node from 20 on: goes on in the repository's own Node, which runs TypeScript as it is.
import { spawn } from 'node:child_process'
import { existsSync, realpathSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** Nothing tells this process when another has installed what it needs. */
const LOOK_AGAIN_MS = 200

const root = join(dirname(realpathSync(fileURLToPath(import.meta.url))), '../../..')
const node = join(root, 'node_modules/.bin/node')
if (!(await isInstalled())) {
  process.stderr.write(`tollward: nothing is installed yet; run "npm start" in ${root} first.\n`)
  process.exit(1)
}
const child = spawn(node, [join(root, 'services/cli/src/main.ts'), ...process.argv.slice(2)], {
  stdio: 'inherit',
  env: { ...process.env, NODE_COMPILE_CACHE: join(root, '.tollward/compile-cache') },
})
// From a terminal the child gets Ctrl-C by itself; this process stays until the child has ended.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => child.kill(signal))
child.on('exit', (code, signal) => process.exit(code ?? (signal === null ? 1 : 130)))

/** `status --wait` is what one types behind a first `npm start`, which is still installing then. */
async function isInstalled() {
  const installed = () => existsSync(node) && existsSync(join(root, '.tollward/installed'))
  const words = process.argv.slice(2).join(' ')
  const wait = /^status\b.* --wait[ =](\d+)(ms|s|m)\b/.exec(words)
  const deadline = Date.now() + (wait ? Number(wait[1]) * { ms: 1, s: 1000, m: 60_000 }[wait[2]] : 0)
  while (!installed() && Date.now() < deadline) await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS))
  return wait ? installed() : existsSync(node)
}
