import { ACCESS, durableSubjects, permissionsOf } from '@tollward/bus'
import { FINDING_SUBJECT } from '@tollward/contracts'

/** NKEY public keys (U…) of everybody who may connect. */
export interface NatsUsers {
  /** By service name. */
  readonly services: Readonly<Record<string, string>>
  /** Makes streams, buckets and durables; only the supervisor has it. */
  readonly provisioner: string
  /** The SIEM that pulls through the durable of this name. */
  readonly siem: string
}

export interface NatsServerSettings {
  readonly host: string
  readonly port: number
  readonly storeDirectory: string
  readonly users: NatsUsers
}

/** The durable consumer through which the local stack's SIEM credential pulls findings. */
export const SIEM_DURABLE = 'siem-default'

const SIEM_INBOX = '_INBOX_siem'

/**
 * What a SIEM's client gives as its JetStream API prefix: under the server's own name for it, a request would ask the SIEM's
 * account, which has no streams.
 */
export const SIEM_API_PREFIX = 'JS.TOLLWARD.API'

const MEMORY_STORE_MAX_BYTES = 1024 ** 3
const FILE_STORE_MAX_BYTES = 32 * 1024 ** 3
/** Above any event of ours; a larger message is somebody's mistake. */
const PAYLOAD_MAX_BYTES = 1024 ** 2

/**
 * The configuration of the local nats-server: one account for the services, in which each credential may use its own subjects
 * and no others, and one for SIEMs, into which only the findings are imported.
 *
 * `sync_interval: always`: what was acknowledged is on the disk. It belongs to a whole server; memory streams don't pay it.
 */
export function natsConfig({ host, port, storeDirectory, users }: NatsServerSettings): string {
  const siemSubjects = durableSubjects(SIEM_DURABLE)
  const asSiemSaysIt = (subject: string) => subject.replace(/^\$JS\.API/, SIEM_API_PREFIX)
  const config = {
    host,
    port,
    max_payload: PAYLOAD_MAX_BYTES,
    jetstream: {
      store_dir: storeDirectory,
      max_memory_store: MEMORY_STORE_MAX_BYTES,
      max_file_store: FILE_STORE_MAX_BYTES,
      sync_interval: 'always',
    },
    accounts: {
      TOLLWARD: {
        jetstream: 'enabled',
        users: [{ nkey: users.provisioner }, ...Object.keys(ACCESS).map((name) => serviceUser(name, users))],
        exports: [
          { stream: `${FINDING_SUBJECT}.*`, accounts: ['SIEM'] },
          // A pull is answered with many messages, the others with one or none.
          ...siemSubjects.map((service) => ({ service, accounts: ['SIEM'], response_type: 'stream' })),
        ],
      },
      SIEM: {
        users: [
          {
            nkey: users.siem,
            permissions: {
              publish: { allow: siemSubjects.map(asSiemSaysIt) },
              subscribe: { allow: [`${SIEM_INBOX}.>`, `${FINDING_SUBJECT}.*`] },
            },
          },
        ],
        imports: [
          { stream: { account: 'TOLLWARD', subject: `${FINDING_SUBJECT}.*` } },
          ...siemSubjects.map((subject) => ({ service: { account: 'TOLLWARD', subject }, to: asSiemSaysIt(subject) })),
        ],
      },
    },
  }
  // The server's configuration language takes JSON.
  return `${JSON.stringify(config, null, 2)}\n`
}

function serviceUser(name: string, users: NatsUsers) {
  const { publish, subscribe, allowResponses } = permissionsOf(name)
  const nkey = users.services[name]
  if (nkey === undefined) throw new RangeError(`${name} has no key`)
  return {
    nkey,
    permissions: {
      publish: { allow: publish },
      subscribe: { allow: subscribe },
      ...(allowResponses ? { allow_responses: { max: 1, expires: '1m' } } : {}),
    },
  }
}
