import { type FastifyInstance, fastify } from 'fastify'

interface Order {
  id: number
  item: string
  /** Whose it is, as the gateway says. */
  client: string
}

/** Orders of all clients that are kept; an example must not fill a machine. */
const ORDERS_MAX = 1000
const ITEM_LENGTH_MAX = 200
const BODY_BYTES_MAX = 1024 * 1024

/**
 * A small API to protect. It knows nothing of tokens or payments: it trusts the x-tollward-* headers, because only the gateway
 * reaches it and removes those that a client sends.
 */
export function createApi(): FastifyInstance {
  const api = fastify({ logger: false, bodyLimit: BODY_BYTES_MAX, forceCloseConnections: 'idle' })
  const orders: Order[] = []
  let lastId = 0

  api.get('/public', () => ({ message: 'Everybody may read this.' }))
  api.get('/orders', ({ headers }) => ({ orders: orders.filter(({ client }) => client === clientOf(headers)) }))
  api.post<{ Body: { item: string } }>(
    '/orders',
    {
      schema: {
        body: {
          type: 'object',
          required: ['item'],
          properties: { item: { type: 'string', maxLength: ITEM_LENGTH_MAX } },
        },
      },
    },
    ({ headers, body }, reply) => {
      lastId += 1
      const order = { id: lastId, item: body.item, client: clientOf(headers) }
      orders.push(order)
      if (orders.length > ORDERS_MAX) orders.shift()
      return reply.code(201).header('location', `/orders/${order.id}`).send(order)
    },
  )
  api.get<{ Params: { id: string } }>('/orders/:id', ({ headers, params }, reply) => {
    const order = orders.find(({ id, client }) => String(id) === params.id && client === clientOf(headers))
    return order ?? reply.code(404).send({ message: 'There is no such order of yours.' })
  })
  api.get('/echo', ({ method, url, headers }) => ({ method, url, headers }))
  return api
}

function clientOf(headers: Readonly<Record<string, string | string[] | undefined>>): string {
  return String(headers['x-tollward-client'] ?? '')
}
