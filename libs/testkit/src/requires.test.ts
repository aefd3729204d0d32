import assert from 'node:assert/strict'
import { test } from 'node:test'
import { requires } from './mod.ts'

/** The strict mode is on in CI; each test says which it is about. */
async function withRequire(value: string | undefined, work: () => Promise<void>): Promise<void> {
  const before = process.env.TOLLWARD_REQUIRE
  const set = (to: string | undefined) => {
    if (to === undefined) delete process.env.TOLLWARD_REQUIRE
    else process.env.TOLLWARD_REQUIRE = to
  }
  set(value)
  try {
    await work()
  } finally {
    set(before)
  }
}

test('all that is missing is named in the reason to skip', () =>
  withRequire(undefined, async () => {
    const reason = await requires({ tools: ['no-such-tool', 'sh'], files: ['/no/such/file', '/'] })
    assert.equal(reason, 'missing: no-such-tool, /no/such/file')
  }))

test('nothing is skipped where all is there', () =>
  withRequire('all', async () => assert.equal(await requires({ tools: ['sh'], files: ['/'] }), false)))

test('with TOLLWARD_REQUIRE=all a missing thing fails the test file by its name', () =>
  withRequire('all', async () => assert.rejects(requires({ tools: ['no-such-tool'] }), /no-such-tool/)))
