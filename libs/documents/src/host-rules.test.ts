import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { test } from 'node:test'
import { DocumentError, formatFault, parseDocuments, parseHostRules } from './parse.ts'

const RULE = `apiVersion: tollward.dev/v1
kind: KernelRule
metadata: { name: no-telnet }
spec: { direction: ingress, protocol: tcp, ports: [23], action: drop }
`
const listOf = (spec: string) => `apiVersion: tollward.dev/v1
kind: BlockList
metadata: { name: scanners }
spec: ${spec}
`

function faultsOf(parse: typeof parseHostRules | typeof parseDocuments, text: string): string {
  try {
    parse(text, 'f')
  } catch (error) {
    if (error instanceof DocumentError) return error.faults.map(formatFault).join('\n')
    throw error
  }
  return ''
}

test('a rules file of one host holds kernel rules and block lists, and nothing that needs other services', () => {
  const list = listOf('{ sources: [203.0.113.7, "2001:db8::/32"], until: 2027-01-31T18:00:00+01:00 }')
  const read = parseHostRules(`${RULE}---\n${list}`, 'f').map(({ document }) => document)
  assert.deepEqual(
    read.map(({ kind, metadata }) => `${kind}/${metadata.name}`),
    ['KernelRule/no-telnet', 'BlockList/scanners'],
  )
  assert.match(
    faultsOf(parseHostRules, RULE.replace('KernelRule', 'ApiPolicy')),
    /^f:2: kind: needs the other services/,
  )
  assert.match(faultsOf(parseHostRules, RULE.replace('KernelRule', 'KernelRul')), /did you mean KernelRule\?$/)
  assert.match(faultsOf(parseDocuments, list), /^f:2: kind: is for the rules file of one host/)
})

test('to have no rules is said by a comment; an empty file may be one that is just being written', () => {
  assert.deepEqual(parseHostRules('# nothing\n\n  # yet', 'f'), [])
  for (const text of ['', '\n', '---\n'])
    assert.equal(faultsOf(parseHostRules, text), 'f:1: there is no document in the text')
})

test('what nobody means to block is refused where it stands', () => {
  const faults = [
    ['{ sources: [] }', 'f:4: spec.sources: must have at least 1 entry'],
    [
      '{ sources: [10.0.0.1/8] }',
      'f:4: spec.sources[0]: must be an address or a CIDR without host bits, such as 10.0.0.0/8',
    ],
    ['{ sources: [0.0.0.0/0] }', /^f:4: spec\.sources\[0\]: is too wide: an IPv4 range has at least \/8/],
    ['{ sources: ["::/0"] }', /is too wide/],
    ['{ sources: ["::ffc0:0:0/90"] }', /is too wide/],
    [
      '{ sources: [10.0.0.1], until: 2027-01-31 }',
      'f:4: spec.until: must be a time with its zone, such as 2027-01-31T18:00:00Z',
    ],
    ['{ sources: [10.0.0.1], unitl: 2027-01-31T18:00:00Z }', 'f:4: spec.unitl: is no known field; did you mean until?'],
  ] as const
  for (const [spec, fault] of faults) {
    const said = faultsOf(parseHostRules, listOf(spec))
    if (typeof fault === 'string') assert.equal(said, fault)
    else assert.match(said, fault)
  }
})

test('the documents that a host is shown as examples are taken', async () => {
  const guide = await readFile(new URL('../../../docs/archsec.md', import.meta.url), 'utf8')
  const examples = [...guide.matchAll(/```yaml\n(.*?)```/gs)].map(([, yaml = '']) => yaml)
  const delivered = await readFile(new URL('../../../deploy/host/rules.yaml', import.meta.url), 'utf8')
  assert.deepEqual(parseHostRules(delivered, 'rules.yaml'), [])
  const [, commented = ''] = delivered.split(/^#\n/m)
  examples.push(commented.replace(/^# ?/gm, ''))
  for (const yaml of examples) {
    const kinds = parseHostRules(yaml, 'example').map(({ document }) => document.kind)
    assert.deepEqual(kinds, ['BlockList', 'KernelRule'])
  }
  assert.equal(examples.length, 2)
})
