import type { NatsConnection } from '@nats-io/transport-node'

const SUBJECT = 'bench.bare'

/** Milliseconds from publishing a message on one connection until it is there on the other. */
export async function publishAndReceive(sender: NatsConnection, receiver: NatsConnection): Promise<number> {
  const { promise, resolve } = Promise.withResolvers<number>()
  const subscription = receiver.subscribe(SUBJECT, { max: 1, callback: () => resolve(performance.now()) })
  // The subscription is on the server once this has gone there and back.
  await receiver.flush()
  const beganMs = performance.now()
  sender.publish(SUBJECT, 'a decision')
  const receivedMs = await promise
  subscription.unsubscribe()
  return receivedMs - beganMs
}
