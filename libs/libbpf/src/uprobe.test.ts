import assert from 'node:assert/strict'
import { test } from 'node:test'
import { hasSafeReturnProbes } from './uprobe.ts'

test('kernels on which a probe at a return kills processes under seccomp are known', () => {
  const unsafe = ['6.11.0', '6.11.0-29-generic', '6.11.11', '6.12.0', '6.12.9-amd64', '6.13.0-rc1', '6.13.2']
  for (const kernel of unsafe) assert.equal(hasSafeReturnProbes(kernel, 'x64'), false, kernel)
  const safe = [
    '5.15.0-91-generic',
    '6.1.0-18-amd64',
    '6.10.14',
    '6.12.43+deb13-amd64',
    '6.13.9',
    '6.14',
    '6.18.44',
    '7.0.1',
  ]
  for (const kernel of safe) assert.equal(hasSafeReturnProbes(kernel, 'x64'), true, kernel)
  assert.equal(hasSafeReturnProbes('6.11.0', 'arm64'), true)
})
