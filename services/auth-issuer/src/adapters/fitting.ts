import { create, type DescMessage, type MessageInitShape, type MessageShape, toBinary } from '@bufbuild/protobuf'

/** Room in one answer, of the 1 MiB that a message may have. */
const LIST_BYTES_MAX = 768 * 1024

/** Before each element of a list. */
const TAG_BYTES = 4

/** As many from the beginning as fit into an answer, and how many more there are. */
export function fitting<Desc extends DescMessage>(
  schema: Desc,
  all: readonly MessageInitShape<Desc>[],
): { listed: MessageShape<Desc>[]; leftOut: number } {
  const listed: MessageShape<Desc>[] = []
  let room = LIST_BYTES_MAX
  for (const init of all) {
    const message = create(schema, init)
    room -= toBinary(schema, message).length + TAG_BYTES
    if (room < 0) break
    listed.push(message)
  }
  return { listed, leftOut: all.length - listed.length }
}
