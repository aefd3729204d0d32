import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { RECORD_SOURCES_MAX, RECORDS_PER_SOURCE } from '../edges.ts'
import { CallFolder } from './call-folder.ts'

describe('folding of calls', () => {
  test('each call is recorded by itself or counted in a fold, and a source has few records in a window', () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(fc.constantFrom('a', 'b', 'c'), { maxLength: 60 }), { maxLength: 4 }),
        (windows) => {
          const folder = new CallFolder<string>()
          for (const sources of windows) {
            const alone = sources.filter((source) => folder.add(source, source))
            const folded = folder.close()
            const count = folded.reduce((total, fold) => total + fold.count, 0)
            assert.equal(alone.length + count, sources.length)
            for (const source of ['a', 'b', 'c']) {
              assert.ok(alone.filter((one) => one === source).length <= RECORDS_PER_SOURCE)
              assert.ok(folded.filter(({ first }) => first === source).length <= 1)
            }
          }
        },
      ),
    )
  })

  test('sources beyond the bound are folded together, and none is forgotten', () => {
    const folder = new CallFolder<number>()
    const sources = RECORD_SOURCES_MAX * 2
    let alone = 0
    for (let source = 0; source < sources; source++) if (folder.add(String(source), source)) alone += 1
    const folded = folder.close()
    assert.equal(folded.length, 1)
    assert.equal(alone + (folded[0]?.count ?? 0), sources)
  })
})
