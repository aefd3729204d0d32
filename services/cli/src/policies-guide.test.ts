import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { chdir, cwd } from 'node:process'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import { temporaryDirectory } from '@tollward/testkit'
import { runCommand } from './program.ts'

const GUIDE = resolve(import.meta.dirname, '../../../docs/policies.md')

/** A marked block: a file that the reader has, or a command and what it says. */
const BLOCK =
  /<!-- policies-test: (?:file (?<file>\S+) -->\n```\w+\n(?<text>.*?)```|run -->\n```sh\nnpx --no tollward (?<command>[^\n]*)\n```\n\n```text\n(?<output>.*?)```)/gs

test('the guide to policies shows what its commands say', async () => {
  const guide = await readFile(GUIDE, 'utf8')
  const blocks = [...guide.matchAll(BLOCK)].map(({ groups = {} }) => groups)
  assert.equal(blocks.length, guide.split('<!-- policies-test:').length - 1, 'a marked block is not of a known form')
  await using directory = await temporaryDirectory()
  const before = cwd()
  chdir(directory.path)
  try {
    let commands = 0
    for (const { file, text = '', command, output } of blocks) {
      if (file !== undefined) await writeFile(join(directory.path, file), text)
      if (command === undefined) continue
      commands += 1
      assert.deepEqual(await run(words(command)), { code: 0, out: output, err: '' }, command)
    }
    assert.ok(commands >= 4)
  } finally {
    chdir(before)
  }
})

/** A command line's words; 'quoted' ones are taken as they are. */
function words(line: string): string[] {
  return [...line.matchAll(/'([^']*)'|\S+/g)].map(([word, quoted]) => quoted ?? word)
}

async function run(argv: readonly string[]) {
  const run = { code: -1, out: '', err: '' }
  run.code = await runCommand(argv, {
    out: (text) => {
      run.out += text
    },
    err: (text) => {
      run.err += text
    },
    stdin: Readable.from([]),
    operatorFile: 'nothing.json',
    signal: new AbortController().signal,
  })
  return run
}
