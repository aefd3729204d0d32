// npm run bench [-- NAME]: each benchmark compares what we do with something else in the same run, and prints a table.
import { globSync, mkdirSync, writeFileSync } from 'node:fs'
import { cpus, release } from 'node:os'
import { basename, join } from 'node:path'
import { ROOT } from '../checks/copy.ts'

/** What a benchmark file exports. */
export interface Benchmark {
  readonly name: string
  readonly run: () => Promise<{ readonly rows: readonly Readonly<Record<string, string | number>>[] }>
}

const wanted = process.argv.slice(2)
const files = globSync('test/bench/*.bench.ts', { cwd: ROOT }).sort()
const chosen = files.filter((file) => wanted.length === 0 || wanted.some((part) => basename(file).includes(part)))
if (chosen.length === 0) {
  process.stderr.write(
    `No benchmark has this name; there are: ${files.map((file) => basename(file, '.bench.ts')).join(', ')}\n`,
  )
  process.exit(1)
}
const directory = join(ROOT, '.tollward/bench')
mkdirSync(directory, { recursive: true })
for (const file of chosen) {
  const { name, run } = (await import(join(ROOT, file))) as Benchmark
  process.stdout.write(`\n${name}\n`)
  const { rows } = await run()
  console.table(rows)
  const machine = { cpu: cpus()[0]?.model ?? '', cores: cpus().length, kernel: release(), node: process.version }
  const path = join(directory, `${basename(file, '.bench.ts')}.json`)
  writeFileSync(path, `${JSON.stringify({ name, at: new Date().toISOString(), machine, rows }, null, 2)}\n`)
}
process.exit(0)
