import assert from 'node:assert/strict'
import { hash, randomBytes } from 'node:crypto'
import { after, before, test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Bus } from '@tollward/bus'
import { bucketContract, contract, parseAddress } from '@tollward/contracts'
import {
  AccountNameSchema,
  AccountSchema,
  type LoginFailed,
  LoginFailedSchema,
  LoginFailure,
  type SubjectRevoked,
  SubjectRevokedSchema,
  UserService,
} from '@tollward/contracts/token'
import { eventually, requires } from '@tollward/testkit'
import { Registry } from 'prom-client'
import { issuerMetrics } from '../../metrics.ts'
import { startTestBus, type TestBus } from '../../test-issuer.ts'
import type { MasterSecret } from '../master-secret.ts'
import { type Accounts, openAccounts } from './accounts.ts'
import { type Attempts, openAttempts } from './attempts.ts'
import { openPasswords } from './passwords.ts'
import { openSignIn } from './sign-in.ts'
import { userService } from './user-service.ts'

const skip = await requires({ tools: ['nats-server'] })

/** Fast: what is tried here is not how long a hash takes. */
const FAST = { ln: 10, r: 8, p: 1 }

const PASSWORD = 'correct horse battery'

/** Bursts that are reached at once; then nothing for an hour. */
const RATES = {
  name: { burst: 3, intervalMs: 3_600_000 },
  browser: { burst: 2, intervalMs: 3_600_000 },
  source: { burst: 6, intervalMs: 3_600_000 },
}

let shared: TestBus
let bus: Bus
/** Two replicas. */
let accounts: Accounts
let others: Accounts
let attempts: Attempts
let signIn: ReturnType<typeof openSignIn>
let metrics: ReturnType<typeof issuerMetrics>
const failed: LoginFailed[] = []
const ended: SubjectRevoked[] = []
const resources = new AsyncDisposableStack()

const secret = randomBytes(32)
const masterSecret: MasterSecret = { derive: () => secret, deriveAll: () => [secret] }

before(async () => {
  if (skip) return
  shared = resources.use(await startTestBus())
  bus = await shared.connected()
  metrics = issuerMetrics(new Registry())
  accounts = openAccounts({ bus, passwords: openPasswords(metrics, FAST), metrics })
  others = openAccounts({ bus, passwords: openPasswords(metrics, FAST), metrics })
  attempts = openAttempts({ bus, masterSecret, rates: RATES })
  signIn = openSignIn({ bus, accounts, attempts, metrics })
  resources.use(await bus.follow(contract(LoginFailedSchema), 'beginning', (event) => failed.push(event)))
  resources.use(await bus.follow(contract(SubjectRevokedSchema), 'beginning', (event) => ended.push(event)))
})

after(() => resources.disposeAsync())

/** An address that no other test tries from. */
function newAddress(): Uint8Array {
  return new Uint8Array([0x20, 0x01, 0x0d, 0xb8, ...randomBytes(12)])
}

function newName(): string {
  return `person-${randomBytes(6).toString('hex')}`
}

async function hashes(): Promise<number> {
  const { values } = await metrics.passwordHashes.get()
  return values[0]?.value ?? 0
}

function attempt(name: string, password: string, address = newAddress(), browser?: string) {
  return signIn({ name, password, address, browser })
}

async function refusalOf(tried: ReturnType<typeof attempt>): Promise<string> {
  const result = await tried
  return 'refused' in result ? result.refused : 'signed in'
}

test('a person signs in with the password that was set, in any spelling of their name', { skip }, async () => {
  const name = newName()
  const { person, madePassword } = await accounts.create(name, PASSWORD)
  assert.equal(madePassword, '', 'only one that was made is shown')
  assert.match(person.subject, /^[\w-]{22}$/)
  assert.deepEqual(await accounts.authenticate(name.toUpperCase(), PASSWORD), { person })
  const wrong = await accounts.authenticate(name, `${PASSWORD}!`)
  assert.deepEqual(wrong, { failure: LoginFailure.WRONG_PASSWORD, subject: person.subject })
  assert.deepEqual(await accounts.authenticate(newName(), PASSWORD), {
    failure: LoginFailure.UNKNOWN_NAME,
    subject: '',
  })
})

test('a made password is shown once and kept only as a hash', { skip }, async () => {
  const name = newName()
  const { person, madePassword } = await accounts.create(name, '')
  assert.match(madePassword, /^[\w-]{24}$/)
  assert('person' in (await accounts.authenticate(name, madePassword)))
  const stored = await bus.bucket(bucketContract(AccountSchema)).get(person.subject)
  assert.match(stored?.value.passwordHash ?? '', /^\$scrypt\$ln=10,r=8,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$/)
  assert(
    !JSON.stringify(stored?.value, (_key, value) => (typeof value === 'bigint' ? String(value) : value)).includes(
      madePassword,
    ),
  )
})

test('of many who create one name at once one does, and a name that a crash left without account is free', {
  skip,
}, async () => {
  const name = newName()
  const created = await Promise.allSettled(
    [accounts, others, accounts, others].map((replica, index) =>
      replica.create(index % 2 ? name : name.toUpperCase(), PASSWORD),
    ),
  )
  assert.equal(created.filter(({ status }) => status === 'fulfilled').length, 1)
  for (const result of created) {
    if (result.status === 'rejected') assert.equal(result.reason.code, 'already_exists')
  }
  const left = newName()
  const key = hash('sha256', left, 'base64url')
  const value = create(AccountNameSchema, { format: 1, subject: randomBytes(16).toString('base64url') })
  await bus.bucket(bucketContract(AccountNameSchema)).create(key, value)
  assert.equal(
    ((await accounts.authenticate(left, PASSWORD)) as { failure: unknown }).failure,
    LoginFailure.UNKNOWN_NAME,
  )
  const [first, second] = await Promise.allSettled([accounts.create(left, PASSWORD), others.create(left, PASSWORD)])
  assert.deepEqual([first?.status, second?.status].sort(), ['fulfilled', 'rejected'])
  assert('person' in (await others.authenticate(left, PASSWORD)))
})

test('a hash with other parameters is made anew at the next right password', { skip }, async () => {
  const name = newName()
  const { person } = await accounts.create(name, PASSWORD)
  const slower = openAccounts({ bus, passwords: openPasswords(metrics, { ...FAST, ln: 11 }), metrics })
  const bucket = bus.bucket(bucketContract(AccountSchema))
  await slower.authenticate(name, 'something wrong')
  assert.match((await bucket.get(person.subject))?.value.passwordHash ?? '', /ln=10/)
  assert('person' in (await slower.authenticate(name, PASSWORD)))
  assert.match((await bucket.get(person.subject))?.value.passwordHash ?? '', /ln=11/)
  assert('person' in (await accounts.authenticate(name, PASSWORD)))
})

test('the same work is done for a name that is nobody’s and for a right name', { skip }, async () => {
  const name = newName()
  await accounts.create(name, PASSWORD)
  const beforeKnown = await hashes()
  await accounts.authenticate(name, 'something wrong')
  const known = (await hashes()) - beforeKnown
  const beforeUnknown = await hashes()
  await accounts.authenticate(newName(), 'something wrong')
  assert.equal(known, 1)
  assert.equal((await hashes()) - beforeUnknown, known)
})

test('a new password ends everything of the person before it is answered', { skip }, async () => {
  const name = newName()
  const { person } = await accounts.create(name, PASSWORD)
  const { person: changed } = await accounts.setPassword(name, `${PASSWORD} staple`, 'changed')
  assert.notEqual(changed.generation, person.generation)
  assert.equal((await others.find(person.subject))?.generation, changed.generation)
  assert.equal(await refusalOf(attempt(name, PASSWORD)), 'wrong')
  const told = await eventually(() => ended.find(({ subject }) => subject === person.subject), {
    what: 'the end is told',
  })
  assert.equal(told.reason, 'changed')
  assert(told.revokedAt)
  await assert.rejects(accounts.setPassword(name, 'too short', 'x'), { code: 'invalid_argument' })
  await assert.rejects(accounts.setPassword(newName(), PASSWORD, 'x'), { code: 'not_found' })
})

test('an end that nobody was told of is told by whoever looks next, once', { skip }, async () => {
  const name = newName()
  const { person } = await accounts.create(name, PASSWORD)
  const bucket = bus.bucket(bucketContract(AccountSchema))
  const entry = await bucket.get(person.subject)
  assert(entry)
  const at = timestampFromMs(1_800_000_000_000)
  // What a replica leaves that is killed between its two writes.
  const left = { generation: 'generation-of-the-end', unannouncedEndAt: at, unannouncedEndReason: 'crashed' }
  await bucket.update(person.subject, create(AccountSchema, { ...entry.value, ...left }), entry.revision)
  await Promise.all([accounts.find(person.subject), others.find(person.subject), others.findByName(name)])
  await accounts.list()
  await accounts.endEverything(person.subject, 'later')
  await eventually(() => ended.some(({ reason, subject }) => subject === person.subject && reason === 'later'), {
    what: 'the later end is told',
  })
  const told = ended.filter(({ subject }) => subject === person.subject).map(({ reason }) => reason)
  assert.deepEqual(told, ['crashed', 'later'])
  assert.equal((await bucket.get(person.subject))?.value.unannouncedEndAt, undefined)
})

test('who is disabled cannot sign in and has lost everything; enabled again they can', { skip }, async () => {
  const name = newName()
  const { person } = await accounts.create(name, PASSWORD)
  const disabled = await accounts.setEnabled(name, false)
  assert.equal(disabled.enabled, false)
  assert.notEqual(disabled.generation, person.generation)
  assert.equal(await refusalOf(attempt(name, PASSWORD)), 'disabled')
  assert.equal(await refusalOf(attempt(name, 'something wrong')), 'wrong', 'only who has the password is told')
  await eventually(() => ended.some(({ subject }) => subject === person.subject), { what: 'the end is told' })
  await accounts.setEnabled(name, true)
  assert.equal(await refusalOf(attempt(name, PASSWORD)), 'signed in')
})

test('who is deleted is gone, and a deletion that crashed is finished; a subject is never given again', {
  skip,
}, async () => {
  const name = newName()
  const { person } = await accounts.create(name, PASSWORD)
  await accounts.remove(name)
  assert.equal(await others.find(person.subject), undefined)
  assert.equal(await others.findByName(name), undefined)
  await eventually(() => ended.some(({ subject }) => subject === person.subject), { what: 'the end is told' })
  await assert.rejects(accounts.remove(name), { code: 'not_found' })
  const next = await accounts.create(name, PASSWORD)
  assert.notEqual(next.person.subject, person.subject)

  const bucket = bus.bucket(bucketContract(AccountSchema))
  const entry = await bucket.get(next.person.subject)
  assert(entry)
  await bucket.update(
    entry.key,
    create(AccountSchema, { ...entry.value, disabled: true, deleted: true }),
    entry.revision,
  )
  const last = await others.create(name, PASSWORD)
  assert.notEqual(last.person.subject, next.person.subject)
  assert.equal(await bucket.get(next.person.subject), undefined)
  assert.deepEqual(
    (await accounts.list()).filter((one) => one.name === name),
    [last.person],
  )
})

test('after too many wrong passwords a name has to wait on every replica, the right one too, and other names do not', {
  skip,
}, async () => {
  const [name, other] = [newName(), newName()]
  await accounts.create(name, PASSWORD)
  await accounts.create(other, PASSWORD)
  const replica = openSignIn({
    bus,
    accounts: others,
    attempts: openAttempts({ bus, masterSecret, rates: RATES }),
    metrics,
  })
  // At once, so that counting only afterwards would let them all pass.
  const tried = await Promise.all(
    Array.from({ length: 8 }, (_, index) =>
      refusalOf(
        (index % 2 ? replica : signIn)({
          name: index % 3 ? name : name.toUpperCase(),
          password: 'something wrong',
          address: newAddress(),
          browser: undefined,
        }),
      ),
    ),
  )
  assert.equal(tried.filter((refusal) => refusal === 'wrong').length, 3)
  assert.equal(tried.filter((refusal) => refusal === 'throttled').length, 5)
  const right = await attempt(name, PASSWORD)
  assert('refused' in right && right.refused === 'throttled')
  assert(right.retryAfterMs > 0 && right.retryAfterMs <= RATES.name.intervalMs)
  assert.equal(await refusalOf(attempt(other, PASSWORD)), 'signed in')
  const unknown = newName()
  for (let count = 0; count < 3; count++) assert.equal(await refusalOf(attempt(unknown, PASSWORD)), 'wrong')
  assert.equal(await refusalOf(attempt(unknown, PASSWORD)), 'throttled', 'a name that is nobody’s is counted alike')
})

test('a right password does not count and resets the count of its name', { skip }, async () => {
  const name = newName()
  await accounts.create(name, PASSWORD)
  const address = newAddress()
  for (let count = 0; count < 8; count++) assert.equal(await refusalOf(attempt(name, PASSWORD, address)), 'signed in')
  for (let round = 0; round < 2; round++) {
    for (let count = 0; count < 2; count++) assert.equal(await refusalOf(attempt(name, 'something wrong')), 'wrong')
    assert.equal(await refusalOf(attempt(name, PASSWORD)), 'signed in')
  }
})

test('after too many wrong passwords a source has to wait, under whatever names, and other sources do not', {
  skip,
}, async () => {
  const name = newName()
  await accounts.create(name, PASSWORD)
  const [first, second] = [parseAddress('198.51.100.7'), parseAddress('198.51.100.8')]
  assert(first && second)
  for (let count = 0; count < 6; count++) assert.equal(await refusalOf(attempt(newName(), PASSWORD, first)), 'wrong')
  assert.equal(await refusalOf(attempt(name, PASSWORD, first)), 'throttled')
  assert.equal(await refusalOf(attempt(name, PASSWORD, second)), 'signed in')
})

test('strangers who use up a name’s attempts do not keep out a browser that the person has signed in with', {
  skip,
}, async () => {
  const [name, other] = [newName(), newName()]
  await accounts.create(name, PASSWORD)
  const browser = attempts.browserOf(name)
  for (let count = 0; count < 4; count++) await attempt(name, 'something wrong')
  assert.equal(await refusalOf(attempt(name, PASSWORD)), 'throttled')
  assert.equal(await refusalOf(attempt(name, PASSWORD, newAddress(), attempts.browserOf(other))), 'throttled')
  assert.equal(await refusalOf(attempt(name, PASSWORD, newAddress(), `${browser.split('.')[0]}.AAAA`)), 'throttled')
  for (let count = 0; count < 2; count++) {
    assert.equal(await refusalOf(attempt(name, 'something wrong', newAddress(), browser)), 'wrong')
  }
  assert.equal(await refusalOf(attempt(name, PASSWORD, newAddress(), browser)), 'throttled', 'it is counted too')
})

test('each failure is told with its cause and a keyed hash of the name; refusals of one minute once', {
  skip,
}, async () => {
  const name = newName()
  const { person } = await accounts.create(name, PASSWORD)
  const address = newAddress()
  for (let count = 0; count < 6; count++) await attempt(name, 'something wrong', address)
  const unknown = newName()
  await attempt(unknown, PASSWORD, address)
  const told = await eventually(
    () => {
      const events = failed.filter((event) => Buffer.from(event.address).equals(address))
      return events.length >= 5 && events
    },
    { what: 'the failures are told' },
  )
  const { WRONG_PASSWORD, THROTTLED } = LoginFailure
  const ofName = told.filter(({ nameHash }) => nameHash === attempts.nameHash(name))
  assert.deepEqual(
    ofName.map(({ failure }) => failure),
    [WRONG_PASSWORD, WRONG_PASSWORD, WRONG_PASSWORD, THROTTLED],
  )
  assert.equal(ofName[0]?.subject, person.subject)
  const ofUnknown = told.find(({ nameHash }) => nameHash === attempts.nameHash(unknown))
  assert.equal(ofUnknown?.failure, THROTTLED, 'the source has used up its attempts')
  assert.notEqual(attempts.nameHash(name), hash('sha256', name, 'hex'), 'nobody finds names by hashing a list of them')
})

test('no name and no address stands in a key of what was counted', { skip }, async () => {
  const name = newName()
  const address = parseAddress('203.0.113.77')
  assert(address)
  await attempt(name, PASSWORD, address)
  const keys = (await bus.rawBucket('oidc-Attempts').entries()).map(({ key }) => key)
  assert(keys.length > 0)
  for (const key of keys) {
    assert.match(key, /^(name|browser|source)\/[\w-]{43}$/)
    assert(!key.includes(hash('sha256', name, 'base64url')))
  }
})

test('operators create, list, disable and delete people over the bus', { skip }, async () => {
  await using _served = bus.serve(UserService, userService(accounts))
  const caller = await shared.connected('admin-api')
  const users = caller.client(UserService)
  const name = newName()
  const { user, password } = await users.createUser({ name })
  assert(user && password)
  assert.equal(await refusalOf(attempt(name, password)), 'signed in')
  await assert.rejects(users.createUser({ name }), { code: 'already_exists' })
  assert.deepEqual((await users.listUsers({ user: name.toUpperCase() })).users, [user])
  assert.deepEqual((await users.listUsers({ user: user.subject })).users, [user])
  assert((await users.listUsers({})).users.length > 1)
  assert.deepEqual((await users.listUsers({ user: newName() })).users, [])
  const renewed = await users.setPassword({ name })
  assert.equal(await refusalOf(attempt(name, password)), 'wrong')
  assert.equal(await refusalOf(attempt(name, renewed.password)), 'signed in')
  assert.equal((await users.setUserEnabled({ name, enabled: false })).user?.enabled, false)
  await users.deleteUser({ name })
  await assert.rejects(users.deleteUser({ name }), { code: 'not_found' })
})

test('too many who wait for their hash are turned away instead of filling the memory', { skip }, async () => {
  const passwords = openPasswords(metrics, FAST)
  const results = await Promise.allSettled(Array.from({ length: 60 }, () => passwords.verify(PASSWORD, undefined)))
  const refused = results.filter(({ status }) => status === 'rejected')
  assert.equal(refused.length, 60 - 2 - 50)
  for (const result of refused) assert(result.status === 'rejected' && result.reason.code === 'unavailable')
  assert.equal(await passwords.verify(PASSWORD, undefined), false, 'and later it works again')
})
