import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Implementation } from '@tollward/bus'
import type { KeyService } from '@tollward/contracts/token'
import { KEY_ALGORITHMS, lifeOf, lineOf, type RingKey } from '../../domain/key-ring.ts'
import type { KeyRing } from './key-ring.ts'

/** What auth-issuer answers about its signing keys. */
export function keyService(ring: Pick<KeyRing, 'keys' | 'rotate' | 'times'>): Implementation<typeof KeyService> {
  const answer = (keys: readonly RingKey[]) => ({
    keys: KEY_ALGORITHMS.flatMap((algorithm) =>
      lineOf(keys, algorithm).map((key, index, line) => {
        const { signsUntilMs, removedAtMs } = lifeOf(key, line[index + 1], ring.times)
        return {
          kid: key.kid,
          algorithm,
          createdAt: timestampFromMs(key.createdAtMs),
          signsFrom: timestampFromMs(key.signsFromMs),
          ...(signsUntilMs === undefined ? {} : { signsUntil: timestampFromMs(signsUntilMs) }),
          ...(removedAtMs === undefined ? {} : { removedAt: timestampFromMs(removedAtMs) }),
        }
      }),
    ),
  })
  return {
    listKeys: async () => answer(ring.keys()),
    rotateKeys: async () => answer(await ring.rotate()),
  }
}
