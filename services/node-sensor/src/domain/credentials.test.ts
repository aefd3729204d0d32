import assert from 'node:assert/strict'
import { test } from 'node:test'
import { credentialKinds } from './credentials.ts'

test('kinds of credential are told by scheme, field and parameter, and never a value of any', () => {
  const secret = 'hunter2-s3cr3t'
  const cases = [
    [[['authorization', `Bearer ${secret}`]], '', ['bearer']],
    [[['authorization', `dPoP ${secret}`]], '', ['dpop']],
    [[['authorization', `AWS4-HMAC-SHA256 Credential=${secret}`]], '', ['aws-signature']],
    [[['authorization', secret]], '', ['other']],
    [[['authorization', `${secret} ${secret}`]], '', ['other']],
    [[['authorization', 'constructor x']], '', ['other']],
    [
      [
        ['cookie', `sid=${secret}`],
        ['x-api-key', secret],
        ['authorization', `Basic ${secret}`],
        ['cookie', 'b=1'],
      ],
      '',
      ['api-key', 'basic', 'cookie'],
    ],
    [[['x-forwarded-client-cert', secret]], '', ['client-certificate']],
    [[], `page=1&API_KEY=${secret}`, ['in-query']],
    [[], 'api_key=&token&monkey=1', []],
    [[['constructor', secret]], '', []],
  ] as const
  for (const [fields, query, kinds] of cases) {
    const told = credentialKinds(fields, query)
    assert.deepEqual(told, kinds)
    assert.ok(!told.join().includes(secret))
  }
})
