import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { findSensitive, type SensitiveKind, SensitiveScan, withoutSensitive } from './sensitive.ts'

const PAYLOAD = 'eyJzdWIiOiIxMjM0NTY3ODkwIn0'
const JWT = `eyJhbGciOiJIUzI1NiJ9.${PAYLOAD}.c2lnbmF0dXJlLW9mLXRoZS10ZXN0`

/** Published test numbers of the issuers, example accounts of the IBAN registry. */
const THERE: Readonly<Record<SensitiveKind, readonly string[]>> = {
  'card-number': [
    '4111111111111111',
    '4111 1111 1111 1111',
    '4111-1111-1111-1111 12/27',
    'qty 2 5555 5555 5555 4444',
    '5105105105105100',
    '378282246310005',
    '3782 822463 10005',
    '6011111111111117',
    '3530111333300000',
    '30569309025904',
    '2223003122003222',
  ],
  email: ['alice@example.com', '{"to":"a.b+c@mail.example.co.uk"}', 'Write to bob@example.org.', '<x@y.de>'],
  iban: ['DE89370400440532013000', 'GB29 NWBK 6016 1331 9268 19', 'NO9386011117947', '"FR1420041010050500013M02606"'],
  jwt: [
    JWT,
    `token=${JWT}&x=1`,
    `eyJhbGciOiJub25lIn0.${PAYLOAD}.`,
    'eyJhbGciOiJSU0EtT0FFUCJ9.QUFBQUFBQUE.QUFBQUFBQUE.QUFB.QUFB',
  ],
  'private-key': [
    '-----BEGIN PRIVATE KEY-----\nMII',
    'x -----BEGIN OPENSSH PRIVATE KEY-----',
    '-----BEGIN PGP PRIVATE KEY BLOCK-----',
  ],
  'aws-access-key': ['AKIAIOSFODNN7EXAMPLE', '"ASIAIOSFODNN7EXAMPLE"'],
  password: ['{"user":"a","password": "x"}', 'user=a&password=x', 'passwd=x'],
  'us-ssn': ['078-05-1120', 'ssn: 219-09-9999,'],
}

/** What resembles them, and is none. */
const NOT_THERE = [
  'user@host and @example.com and a@b.c1 and git@github',
  '4111111111111112 1732278000000 1234567890123456 0000000000000000',
  'v4111111111111111 1.4111111111111111 41111111111111110000',
  'DE89370400440532013001 XX12345678901234 DE8937040044053201300',
  'eyJhbGciOiJIUzI1NiJ9 eyJ.eyJ. eyJhbGciOiJIUzI1NiJ9.notjson.sig',
  '-----BEGIN PUBLIC KEY----- -----BEGIN CERTIFICATE-----',
  'AKIAIOSFODNN7 XAKIAIOSFODNN7EXAMPLE AKIAIOSFODNN7EXAMPLE1',
  '{"password":""} password= password reset "passwords":"x"',
  '000-12-3456 666-12-3456 912-12-3456 123-00-4567 123-45-0000 078-051-120 1078-05-1120',
  '2026-11-22T01:02:03.456789Z +1-202-555-0143 192.168.100.200 00000000-0000-4000-8000-000000000000',
]

function kindsOf(text: string): SensitiveKind[] {
  const found = new Set<SensitiveKind>()
  findSensitive(text, found)
  return [...found].sort()
}

test('each kind is found by what makes it one, and nothing else is', () => {
  for (const [kind, examples] of Object.entries(THERE))
    for (const example of examples) assert.deepEqual(kindsOf(example), [kind], example)
  for (const text of NOT_THERE) assert.deepEqual(kindsOf(text), [], text)
})

test('what lies across two pieces of a message is found', () => {
  for (const [kind, [example = '']] of Object.entries(THERE))
    for (let at = 1; at < example.length; at += 1) {
      const found = new Set<SensitiveKind>()
      const scan = new SensitiveScan(found)
      scan.scan(Buffer.from(`{"a":1,"b":" ${example.slice(0, at)}`))
      scan.scan(Buffer.from(`${example.slice(at)} "}`))
      assert.ok(found.has(kind as SensitiveKind), `${kind} cut at ${at}`)
    }
})

test('time is linear in what is looked at, also in what is made to take long', () => {
  const hostile = [
    'a@',
    `${'a'.repeat(70)}@`,
    'a@a.',
    'eyJ',
    'eyJhbGciOiJ.',
    '-----BEGIN ',
    'AKIA',
    'DE89 ',
    'password": ',
    '1-',
    '4111 ',
    '1',
    `a@${'a.'.repeat(120)}`,
    '&pwd',
  ]
  for (const piece of hostile) {
    const text = piece.repeat(Math.ceil(320_000 / piece.length))
    const took = Math.min(...[1, 2, 3].map(() => cpuMs(() => kindsOf(text))))
    // Linear, it takes some 5 ms; quadratic, seconds.
    assert.ok(took < 250, `${piece}: ${took} ms`)
  }
})

test('whatever a message holds, scanning does not throw, and ends with the first 64 KiB', () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 10 }), (pieces) => {
      const scan = new SensitiveScan(new Set())
      for (const piece of pieces) scan.scan(piece)
    }),
  )
  const found = new Set<SensitiveKind>()
  const scan = new SensitiveScan(found)
  scan.scan(Buffer.alloc(64 * 1024, ' '))
  scan.scan(Buffer.from('alice@example.com'))
  assert.equal(found.size, 0)
})

test('a path keeps no sensitive value, plain or percent-encoded, and all else as it is', () => {
  const cases = [
    ['/users/alice@example.com/orders/17', '/users/{email}/orders/17'],
    ['/users/alice%40example.com', '/users/{email}'],
    [`/verify/${JWT}`, '/verify/{jwt}'],
    ['/cards/4111111111111111/charge', '/cards/{card-number}/charge'],
    ['/accounts/DE89370400440532013000', '/accounts/{iban}'],
    ['/orders/550e8400-e29b-41d4-a716-446655440000/%zz', '/orders/550e8400-e29b-41d4-a716-446655440000/%zz'],
  ] as const
  for (const [path, kept] of cases) assert.equal(withoutSensitive(path, new Set()), kept)
})

/** Of the processor: others use the machine too. */
function cpuMs(work: () => void): number {
  const before = process.cpuUsage()
  work()
  return process.cpuUsage(before).user / 1000
}
