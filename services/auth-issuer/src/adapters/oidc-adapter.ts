import { AppError } from '@tollward/errors'
import { type Adapter, errors } from 'oidc-provider'
import { metadataOf } from './client-metadata.ts'
import type { Clients } from './clients.ts'
import type { Records, Tokens } from './tokens.ts'

/** oidc-provider's storage: one adapter a model, clients from their documents, everything else from its own bucket. */
export function oidcAdapters(clients: Clients, tokens: Tokens): (model: string) => Adapter {
  return (model) => (model === 'Client' ? clientAdapter(clients) : recordAdapter(model, tokens.records(model)))
}

/** Adapters are asked for only what enabled features need; whoever enables sessions or grants meets this. */
function notStored(what: string): never {
  throw new AppError('internal', 'Something went wrong on our side; try again later.', {
    cause: new Error(`no enabled feature has ${what}`),
  })
}

function recordAdapter(model: string, records: Records): Adapter {
  return {
    upsert: (id, payload, lifetimeSeconds) => records.save(id, payload, lifetimeSeconds),
    find: async (id) => {
      const payload = await records.find(id)
      return payload && { ...payload, jti: id }
    },
    consume: async (id) => {
      if (!(await records.consume(id, Math.floor(Date.now() / 1000)))) {
        throw new errors.InvalidGrant(`${model} was used before`)
      }
    },
    destroy: (id) => records.remove(id),
    findByUid: async () => notStored('sessions'),
    findByUserCode: async () => notStored('user codes'),
    revokeByGrantId: async () => notStored('grants'),
  }
}

function clientAdapter(clients: Clients): Adapter {
  const readOnly = async () => notStored('clients that register themselves')
  return {
    find: async (id) => {
      const client = await clients.find(id)
      return client && metadataOf(client)
    },
    upsert: readOnly,
    consume: readOnly,
    destroy: readOnly,
    findByUid: readOnly,
    findByUserCode: readOnly,
    revokeByGrantId: readOnly,
  }
}
