import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { acquireOcsfSchema } from '@tollward/acquire'
import { requires } from '@tollward/testkit'
import { Ajv2020 } from 'ajv/dist/2020.js'
import fc from 'fast-check'
import { detectionFinding } from './domain/ocsf.ts'
import { address, alert, NOW_MS } from './test-alert.ts'

const skip = await requires({ tools: ['ocsf-schema'] })

const SCHEMA_BYTES_MAX = 16 * 1024 * 1024

/** The published schema of the class, as a library that is not ours writes it. */
async function ocsfValidator() {
  const { command, args } = await acquireOcsfSchema()
  const options = { maxBuffer: SCHEMA_BYTES_MAX }
  const { stdout } = await promisify(execFile)(command, [...args, '2004', '1.8.0', 'security_control'], options)
  const validate = new Ajv2020({ allErrors: true, strict: false }).compile(JSON.parse(stdout))
  return (finding: object) => {
    const valid = validate(JSON.parse(JSON.stringify(finding)))
    return valid
      ? []
      : (validate.errors ?? []).map(
          ({ instancePath, message, params }) => `${instancePath} ${message} ${JSON.stringify(params)}`,
        )
  }
}

test('every alert becomes a finding that the published schema of OCSF 1.8.0 accepts', { skip }, async () => {
  const faults = await ocsfValidator()
  const addresses = fc.constantFrom(address('203.0.113.66'), address('2001:db8::1'), address('::'), new Uint8Array())
  const times = fc.option(fc.integer({ min: 0, max: NOW_MS }).map(timestampFromMs), { nil: undefined })
  const alerts = fc.record(
    {
      detector: fc.constantFrom('', 'port-scan', 'something-new'),
      detectorVersion: fc.string(),
      severity: fc.integer({ min: 0, max: 9 }),
      confidence: fc.integer({ min: 0, max: 9 }),
      title: fc.string(),
      reason: fc.string(),
      source: addresses,
      node: fc.string(),
      evidence: fc.array(
        fc.record({
          destination: addresses,
          destinationPort: fc.nat(65_535),
          protocol: fc.nat(255),
          note: fc.string(),
        }),
        { maxLength: 3 },
      ),
      disposition: fc.integer({ min: 0, max: 9 }),
      attackTechnique: fc.constantFrom('', 'T1046', 'T1499', 'T9999'),
      raisedAt: times,
      blockedUntil: times,
    },
    { requiredKeys: [] },
  )
  assert.deepEqual(faults(detectionFinding(alert(), NOW_MS)), [])
  fc.assert(
    fc.property(alerts, (changes) => {
      const known = Object.fromEntries(Object.entries(changes).filter(([, value]) => value !== undefined))
      assert.deepEqual(faults(detectionFinding(alert(known), NOW_MS)), [])
    }),
    { numRuns: 300 },
  )
})

test('the validator finds what is missing and what is not of the schema', { skip }, async () => {
  const faults = await ocsfValidator()
  const { finding_info: _, ...withoutInfo } = detectionFinding(alert(), NOW_MS)
  assert.notDeepEqual(faults(withoutInfo), [])
  assert.notDeepEqual(faults({ ...detectionFinding(alert(), NOW_MS), of_our_own: 1 }), [])
  assert.notDeepEqual(faults({ ...detectionFinding(alert(), NOW_MS), severity_id: 42 }), [])
})
