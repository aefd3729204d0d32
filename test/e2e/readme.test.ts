import assert from 'node:assert/strict'
import { readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { enterOwnNetwork, requires, startProcess, temporaryDirectory } from '@tollward/testkit'
import { ROOT } from '../checks/copy.ts'
import { startLocalStack } from './local-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind', 'curl', 'bash'] })
if (process.getuid?.() === 0) enterOwnNetwork()

const readme = readFileSync(join(ROOT, 'README.md'), 'utf8')

/** The fenced block behind a mark in the README. */
function block(mark: string): string {
  const found = new RegExp(`<!-- readme-test: ${mark} -->\n\`\`\`\\w+\n([^]*?)\`\`\``).exec(readme)?.[1]
  assert.ok(found, `README.md has no block "${mark}"`)
  return found
}

test('the README’s way to protect an API works as it is printed', { skip }, async () => {
  await using directory = await temporaryDirectory('tollward-readme-')
  await using _api = await startProcess('bash', ['-c', `exec ${block('api').trim()}`])
  const upstream = /--upstream (\S+)/.exec(block('stack'))?.[1]
  assert.ok(upstream)
  await using stack = await startLocalStack(['--upstream', upstream])
  writeFileSync(join(directory.path, 'my-api.yaml'), block('file my-api.yaml'))
  // npx finds the command as it does in a clone.
  for (const name of ['node_modules', 'package.json', 'services'])
    symlinkSync(join(ROOT, name), join(directory.path, name))
  await using steps = await startProcess('bash', ['-euo', 'pipefail', '-c', block('steps')], {
    cwd: directory.path,
    env: { ...process.env, TOLLWARD_OPERATOR_FILE: stack.operatorFile },
  })
  assert.equal(await steps.exited, 0, steps.lines.join('\n'))
  const statuses = steps.lines.filter((line) => line.startsWith('HTTP/1.1'))
  assert.deepEqual(
    statuses.map((line) => line.split(' ')[1]),
    ['402', '200'],
    steps.lines.join('\n'),
  )
  assert.ok(
    steps.lines.some((line) => line.includes('{"hello":"first-client"}')),
    'the API did not learn who called',
  )
})
