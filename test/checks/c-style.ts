// Whether every C file of ours is formatted as bpf/.clang-format says.
import { spawnSync } from 'node:child_process'
import { globSync } from 'node:fs'

const files = globSync('bpf/**/*.{c,h}', { exclude: (path) => path.startsWith('bpf/build') })
const { status } = spawnSync('clang-format', ['--dry-run', '-Werror', ...files], { stdio: 'inherit' })
process.exitCode = files.length > 0 && status === 0 ? 0 : 1
