import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type DescMessage, hasOption } from '@bufbuild/protobuf'
import * as admin from './admin.ts'
import { broadcastContract, bucketContract, contract, methodSubject } from './contract.ts'
import * as decision from './decision.ts'
import * as detection from './detection.ts'
import * as documents from './document.ts'
import * as enforcement from './enforcement.ts'
import { broadcast, event } from './gen/tollward/options/v1/options_pb.ts'
import * as ledger from './ledger.ts'
import * as payment from './payment.ts'
import * as sensor from './sensor.ts'
import * as token from './token.ts'

const messages = [admin, decision, detection, documents, enforcement, ledger, payment, sensor, token]
  .flatMap((area) => Object.values(area) as unknown[])
  .filter(
    (value): value is DescMessage =>
      typeof value === 'object' && value !== null && (value as DescMessage).kind === 'message',
  )

const events = messages.filter((schema) => hasOption(schema, event)).map((schema) => contract(schema))
const broadcasts = messages.filter((schema) => hasOption(schema, broadcast)).map((schema) => broadcastContract(schema))
const told = [...events, ...broadcasts]

test('subjects follow the grammar, name their area and version, and are unique', () => {
  assert.ok(events.length > 10 && broadcasts.length > 0)
  for (const { schema, subject } of told) {
    assert.match(subject, /^tollward\.[a-z]+\.v\d+\.[a-z]+\.[a-z]+$/)
    const [, area, version] = subject.split('.')
    assert.equal(schema.file.proto.package, `tollward.${area}.${version}`)
  }
  assert.equal(new Set(told.map(({ subject }) => subject)).size, told.length)
})

test('an event message is named as its subject says, so that either leads to the other', () => {
  for (const { schema, subject } of told) {
    const [noun = '', verb = ''] = subject.split('.').slice(3)
    assert.equal(schema.name.toLowerCase(), noun + verb)
  }
})

test('a message without a place on the bus is refused', () => {
  assert.throws(() => contract(sensor.FlowSchema), /declares no subject/)
  assert.throws(() => broadcastContract(token.TokenRevokedSchema), /declares no subject of a broadcast/)
  assert.throws(() => bucketContract(sensor.FlowSchema), /declares no bucket/)
})

test('a method is asked under its service and its own name in snake case', () => {
  assert.equal(
    methodSubject(token.IssuerService, token.IssuerService.method.replaceClientSecret),
    'auth-issuer.v1.rpc.replace_client_secret',
  )
  assert.equal(
    methodSubject(payment.VerifierService, payment.VerifierService.method.redeem),
    'payment-verifier.v1.rpc.redeem',
  )
})
