import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { requires } from '@tollward/testkit'
import { copyTree } from './copy.ts'
import { CHECKS } from './list.ts'
import { runCheck } from './run-check.ts'

// A check that can't fail checks nothing: each is seen to fail on a violation planted in a copy of the tree.
for (const check of CHECKS) {
  test(`${check.name} fails on a planted violation`, {
    skip: await requires({ tools: check.needs ? [check.needs] : [] }),
  }, () => {
    using copy = copyTree()
    const { planted } = check
    const file = join(copy.path, planted.file)
    if ('text' in planted) writeFileSync(file, planted.text)
    else {
      const before = readFileSync(file, 'utf8')
      assert.ok(before.includes(planted.replace), `${planted.file} has nothing to replace`)
      writeFileSync(file, before.replace(planted.replace, planted.by))
    }
    const { passed, output } = runCheck(check, copy.path)
    assert.equal(passed, false, 'it passed in spite of the violation')
    assert.match(output, /planted|node|differ/, 'it failed for another reason')
  })
}
