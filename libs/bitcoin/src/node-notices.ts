import { Subscriber } from 'zeromq'
import type { NoticeHandlers } from './chain-source.ts'

const BLOCK_TOPIC = 'hashblock'
const TRANSACTION_TOPIC = 'rawtx'
/** Messages held for us while we are busy; the node drops those beyond, and the counter shows it. */
const RECEIVE_QUEUE_MESSAGES = 10_000
/** No transaction is larger than a block. */
const MESSAGE_BYTES_MAX = 4_000_000
/** A peer that vanished without a word is noticed after this time. */
const HEARTBEAT_INTERVAL_MS = 10_000
const HEARTBEAT_TIMEOUT_MS = 30_000

/** Listens to a node's ZMQ endpoint (`tcp://host:port`) that publishes hashblock and rawtx, and connects again for ever. */
export function listenToNode(url: string, handlers: NoticeHandlers): AsyncDisposable {
  const socket = new Subscriber({
    linger: 0,
    receiveHighWaterMark: RECEIVE_QUEUE_MESSAGES,
    maxMessageSize: MESSAGE_BYTES_MAX,
    heartbeatInterval: HEARTBEAT_INTERVAL_MS,
    heartbeatTimeout: HEARTBEAT_TIMEOUT_MS,
  })
  socket.events.on('connect', () => handlers.onGap())
  socket.events.on('disconnect', () => handlers.onGap())
  socket.subscribe(BLOCK_TOPIC, TRANSACTION_TOPIC)
  socket.connect(url)
  const listening = receive(socket, handlers)
  return {
    [Symbol.asyncDispose]: async () => {
      socket.close()
      await listening
    },
  }
}

async function receive(socket: Subscriber, handlers: NoticeHandlers): Promise<void> {
  const counters = new Map<string, number>()
  for await (const [topicFrame, body, counterFrame] of socket) {
    if (topicFrame === undefined || body === undefined || counterFrame?.length !== 4) continue
    const topic = topicFrame.toString('latin1')
    const counter = counterFrame.readUInt32LE()
    const last = counters.get(topic)
    // The counter is 32 bits wide and wraps.
    if (last !== undefined && counter !== (last + 1) >>> 0) handlers.onGap()
    counters.set(topic, counter)
    if (topic === BLOCK_TOPIC) handlers.onBlock()
    if (topic === TRANSACTION_TOPIC) handlers.onTransaction(body)
  }
}
