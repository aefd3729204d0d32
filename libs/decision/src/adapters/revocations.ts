import type { DescMessage, MessageShape } from '@bufbuild/protobuf'
import type { Bus, Following } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import {
  ClientChangedSchema,
  ClientRevokedSchema,
  GrantRevokedSchema,
  SubjectRevokedSchema,
  TokenRevokedSchema,
} from '@tollward/contracts/token'
import { clientTag, grantTag, subjectTag } from '../domain/revocation-tags.ts'

export type RevocationKind = 'token' | 'grant' | 'client' | 'client change' | 'subject'

/**
 * Hears what ends or changes tokens: `heard` gets the key (the token's hash) or tag of a RevocableCache to forget. Each kind is a
 * feed of its own, so that nobody is sent what was issued. Resolves when the past since then is known; `silentForMs` is that of the
 * longest silent one.
 */
export async function followRevocations(
  bus: Pick<Bus, 'follow'>,
  sinceMs: number,
  heard: (keyOrTag: string, kind: RevocationKind) => void,
): Promise<Following> {
  await using stack = new AsyncDisposableStack()
  const feeds: Following[] = []
  const follow = async <Desc extends DescMessage>(
    schema: Desc,
    kind: RevocationKind,
    named: (event: MessageShape<Desc>) => string,
  ) => {
    const feed = await bus.follow(contract(schema), { timeMs: sinceMs }, (event) => heard(named(event), kind))
    feeds.push(stack.use(feed))
  }
  await follow(TokenRevokedSchema, 'token', ({ tokenHash }) => tokenHash)
  await follow(GrantRevokedSchema, 'grant', ({ grantHash }) => grantTag(grantHash))
  await follow(ClientRevokedSchema, 'client', ({ clientId }) => clientTag(clientId))
  await follow(ClientChangedSchema, 'client change', ({ clientId }) => clientTag(clientId))
  await follow(SubjectRevokedSchema, 'subject', ({ subject }) => subjectTag(subject))
  const owned = stack.move()
  return {
    get silentForMs() {
      return feeds.reduce((longest, feed) => Math.max(longest, feed.silentForMs), 0)
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}
