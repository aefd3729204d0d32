import { hash, randomBytes } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt'
import type { Bus, Entry } from '@tollward/bus'
import { bucketContract, contract } from '@tollward/contracts'
import {
  type Account,
  AccountNameSchema,
  AccountSchema,
  LoginFailure,
  SubjectRevokedSchema,
} from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { accountName, foldedName, type Person } from '../../domain/account.ts'
import { passwordFault } from '../../domain/password.ts'
import type { IssuerMetrics } from '../../metrics.ts'
import { makePassword, type Passwords } from './passwords.ts'

const FORMAT = 1

const SUBJECT_BYTES = 16
const GENERATION_BYTES = 16

const SUBJECT = /^[\w-]{22}$/

/** Writers of one account that may come between before we give up; there are hardly ever two. */
const WRITE_ATTEMPTS_MAX = 5

/** What a sign-in came to. */
export type Verdict = { readonly person: Person } | { readonly failure: LoginFailure; readonly subject: string }

/** People who can sign in. Each look at one finishes what a crash has left: an end that nobody was told of, a deletion. */
export interface Accounts {
  /** The person, disabled or not; undefined: nobody, or deleted. */
  find(subject: string): Promise<Person | undefined>
  findByName(name: string): Promise<Person | undefined>
  list(): Promise<Person[]>
  /** AppError `already_exists` if the name is somebody's, `invalid_argument` if name or password are none. Without password one is made. */
  create(name: string, password: string): Promise<{ person: Person; madePassword: string }>
  /** Whether name and password belong together. Takes the same work for a name that is nobody's. */
  authenticate(name: string, password: string): Promise<Verdict>
  /** Replaces the password and ends everything of the person. Without password one is made. AppError `not_found`, `invalid_argument`. */
  setPassword(name: string, password: string, reason: string): Promise<{ person: Person; madePassword: string }>
  /** Disabling ends everything of the person. AppError `not_found`. */
  setEnabled(name: string, enabled: boolean): Promise<Person>
  /** Ends everything of the person and forgets them. AppError `not_found`. */
  remove(name: string): Promise<void>
  /** Ends sessions, grants and tokens of the person. Resolves when the bus has acknowledged the event. False: there is nobody. */
  endEverything(subject: string, reason: string): Promise<boolean>
}

type Change = { -readonly [K in 'passwordHash' | 'disabled' | 'deleted']?: Account[K] } & {
  /** Ends everything of the person. */
  readonly end?: string
}

const accountsContract = bucketContract(AccountSchema)
const namesContract = bucketContract(AccountNameSchema)
const subjectRevoked = contract(SubjectRevokedSchema)

/** Opens the accounts. */
export function openAccounts({
  bus,
  passwords,
  metrics,
}: {
  bus: Bus
  passwords: Passwords
  metrics: IssuerMetrics
}): Accounts {
  const accounts = bus.bucket(accountsContract)
  const names = bus.bucket(namesContract)

  /** Tells that everything of the person has ended, and writes down that it was told. */
  const announceEnd = async (entry: Entry<Account>): Promise<Entry<Account>> => {
    const { subject, generation, unannouncedEndAt, unannouncedEndReason } = entry.value
    const event = create(SubjectRevokedSchema, { subject, reason: unannouncedEndReason })
    if (unannouncedEndAt) event.revokedAt = unannouncedEndAt
    await bus.publish(subjectRevoked, event, { id: `subject.revoked.${subject}.${generation}` })
    metrics.revocations.inc({ of: 'subject' })
    const { unannouncedEndAt: _told, ...rest } = entry.value
    const value = create(AccountSchema, { ...rest, unannouncedEndReason: '' })
    try {
      return { ...entry, value, revision: await accounts.update(entry.key, value, entry.revision) }
    } catch (error) {
      // Whoever was faster has told it too, or ended everything once more and will tell that.
      if (isOutrun(error)) return entry
      throw error
    }
  }

  /** Removes what is left of a deleted account. The name goes first: an account without a name can be found and finished. */
  const finishDeletion = async ({ key, value }: Entry<Account>): Promise<void> => {
    const name = await names.get(nameKey(value.name))
    if (name?.value.subject === value.subject) await names.remove(name.key, { revision: name.revision })
    await accounts.remove(key)
  }

  const finished = async (entry: Entry<Account>): Promise<Entry<Account> | undefined> => {
    if (entry.value.format !== FORMAT) {
      throw new AppError('internal', 'An account is stored in a format that this version cannot read.')
    }
    let current = entry
    if (entry.value.unannouncedEndAt) {
      current = await announceEnd(entry)
      metrics.revocationsFinished.inc()
    }
    if (!entry.value.deleted) return current
    await finishDeletion(current)
    return undefined
  }

  const read = async (subject: string): Promise<Entry<Account> | undefined> => {
    if (!SUBJECT.test(subject)) return undefined
    const entry = await accounts.get(subject)
    return entry && (await finished(entry))
  }

  const readByName = async (name: string): Promise<Entry<Account> | undefined> => {
    const owner = await names.get(nameKey(name))
    // The same two reads for a name that is nobody's.
    const entry = await read(owner?.value.subject ?? newSubject())
    return owner && entry
  }

  /** Writes a change unless somebody else wrote meanwhile: then once more on what they wrote. Resolves when an end was told. */
  const change = async (
    find: () => Promise<Entry<Account> | undefined>,
    wanted: Change,
  ): Promise<Account | undefined> => {
    const { end, ...fields } = wanted
    for (let attempt = 1; ; attempt++) {
      const entry = await find()
      if (!entry) return undefined
      const now = timestampFromMs(Date.now())
      const value = create(AccountSchema, { ...entry.value, ...fields })
      if (fields.passwordHash !== undefined) value.passwordChangedAt = now
      if (end !== undefined) {
        value.generation = newGeneration()
        value.unannouncedEndAt = now
        value.unannouncedEndReason = end
      }
      try {
        const revision = await accounts.update(entry.key, value, entry.revision)
        const written = { ...entry, value, revision }
        return (end === undefined ? written : await announceEnd(written)).value
      } catch (error) {
        if (!isOutrun(error) || attempt === WRITE_ATTEMPTS_MAX) throw error
      }
    }
  }

  const changeByName = async (name: string, wanted: Change): Promise<Account> => {
    const account = await change(() => readByName(name), wanted)
    if (!account) throw nobody(name)
    return account
  }

  /**
   * Takes the name for a new account and says under which subject. A name whose account is absent was left by a creation that
   * crashed, since a deletion removes the name first: it is taken over with its subject, of which there is one account at most.
   */
  const claimName = async (name: string): Promise<string> => {
    const key = nameKey(name)
    const owner = await names.get(key)
    if (owner && (await read(owner.value.subject))) throw taken()
    const left = owner && (await names.get(key))
    if (left) {
      await names.update(key, left.value, left.revision)
      return left.value.subject
    }
    const subject = newSubject()
    await names.create(key, create(AccountNameSchema, { format: FORMAT, subject }))
    return subject
  }

  const newHash = async (password: string): Promise<{ madePassword: string; passwordHash: string }> => {
    if (password !== '') {
      const fault = passwordFault(password)
      if (fault !== undefined) throw new AppError('invalid_argument', fault)
    }
    const madePassword = password === '' ? makePassword() : ''
    return { madePassword, passwordHash: await passwords.hash(password || madePassword) }
  }

  return {
    find: async (subject) => personOf((await read(subject))?.value),
    findByName: async (name) => personOf((await readByName(name))?.value),

    list: async () => {
      const entries = await Promise.all((await accounts.entries()).map(finished))
      return entries.flatMap((entry) => personOf(entry?.value) ?? []).sort((a, b) => a.name.localeCompare(b.name))
    },

    create: async (text, password) => {
      const name = accountName(text)
      const { madePassword, passwordHash } = await newHash(password)
      const createdAt = timestampFromMs(Date.now())
      const fields = { format: FORMAT, name, passwordHash, generation: newGeneration(), createdAt }
      try {
        const subject = await claimName(name)
        const account = create(AccountSchema, { ...fields, subject, passwordChangedAt: createdAt })
        await accounts.create(subject, account)
        return { person: presentPerson(account), madePassword }
      } catch (error) {
        throw isOutrun(error) ? taken(error) : error
      }
    },

    authenticate: async (name, password) => {
      const entry = await readByName(name)
      const right = await passwords.verify(password, entry?.value.passwordHash)
      if (!entry) return { failure: LoginFailure.UNKNOWN_NAME, subject: '' }
      const { subject, passwordHash } = entry.value
      if (!right) return { failure: LoginFailure.WRONG_PASSWORD, subject }
      if (entry.value.disabled) return { failure: LoginFailure.DISABLED, subject }
      if (passwords.isOutdated(passwordHash)) {
        const value = create(AccountSchema, { ...entry.value, passwordHash: await passwords.hash(password) })
        await accounts.update(entry.key, value, entry.revision).catch(ignoreOutrun)
      }
      return { person: presentPerson(entry.value) }
    },

    setPassword: async (name, password, reason) => {
      const { madePassword, passwordHash } = await newHash(password)
      return { person: presentPerson(await changeByName(name, { passwordHash, end: reason })), madePassword }
    },

    setEnabled: async (name, enabled) => {
      const wanted = enabled ? { disabled: false } : { disabled: true, end: 'account disabled' }
      return presentPerson(await changeByName(name, wanted))
    },

    remove: async (name) => {
      const account = await changeByName(name, { disabled: true, deleted: true, end: 'account deleted' })
      await read(account.subject)
    },

    endEverything: async (subject, reason) => (await change(() => read(subject), { end: reason })) !== undefined,
  }
}

function newSubject(): string {
  return randomBytes(SUBJECT_BYTES).toString('base64url')
}

function newGeneration(): string {
  return randomBytes(GENERATION_BYTES).toString('base64url')
}

function nameKey(name: string): string {
  return hash('sha256', foldedName(name), 'base64url')
}

function nobody(name: string): AppError {
  return new AppError('not_found', `There is nobody of the name ${JSON.stringify(name)}.`)
}

function taken(cause?: unknown): AppError {
  return new AppError('already_exists', 'There is somebody of this name.', { cause })
}

function personOf(account: Account | undefined): Person | undefined {
  return account && presentPerson(account)
}

function presentPerson({ subject, name, disabled, generation, createdAt, passwordChangedAt }: Account): Person {
  return {
    subject,
    name,
    enabled: !disabled,
    generation,
    createdAtMs: createdAt ? timestampMs(createdAt) : 0,
    passwordChangedAtMs: passwordChangedAt ? timestampMs(passwordChangedAt) : 0,
  }
}

function isOutrun(error: unknown): boolean {
  return error instanceof AppError && (error.code === 'conflict' || error.code === 'already_exists')
}

/** Whoever was faster changed the password: the hash of the old one is not wanted any more. */
function ignoreOutrun(error: unknown): number {
  if (isOutrun(error)) return 0
  throw error
}
