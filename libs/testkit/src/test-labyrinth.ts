import type { Conversation } from './fuzz-mutation.ts'

/** Has one place that is wrong, behind conditions of which each is met by one change in some hundred. */
export function labyrinth(conversation: Conversation): void {
  if (conversation.length !== 3) return
  const [first, second, third] = conversation
  if (second?.lane !== 1) return
  if (second.bytes.length !== 9) return
  if (((second.bytes[4] ?? 0) & 0x28) !== 0x28) return
  if (third?.lane !== 1) return
  if (third.unseen === 0) return
  if ((third.bytes[0] ?? 0) < 0xf0) return
  if (first?.skipped !== 255) return
  throw new Error('found')
}

/** Never comes to an end where the first byte is 0xff. */
export function treadmill([piece]: Conversation): void {
  while (piece?.bytes[0] === 0xff);
}
