import process from 'node:process'
import { create, type MessageInitShape, toBinary } from '@bufbuild/protobuf'
import { Server, ServerCredentials } from '@grpc/grpc-js'
import {
  HeaderValueOption_HeaderAppendAction as AppendAction,
  Authorization,
  CheckResponseSchema,
} from '@tollward/contracts/envoy'

/*
 * What the benchmark of Check stands beside: a bare grpc-js server that answers a fixed OK, as long as ours, without looking at
 * the question. Run as a process of its own; its argument is the port.
 */

const INTERNAL_TOKEN_LENGTH = 600

const headers = [
  ['authorization', `Bearer ${'x'.repeat(INTERNAL_TOKEN_LENGTH)}`],
  ['x-tollward-client', 'bench-client'],
  ['x-tollward-subject', 'bench-client'],
  ['x-tollward-scopes', 'orders'],
].map(([key = '', value = '']) => ({
  header: { key, value },
  append: false,
  appendAction: AppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
}))
const fixed: MessageInitShape<typeof CheckResponseSchema> = {
  status: { code: 0 },
  httpResponse: { case: 'okResponse', value: { headers, headersToRemove: ['x-tollward-pass', 'x-bitcoin-txid'] } },
}
const answer = create(CheckResponseSchema, fixed)
const bytes = Buffer.from(toBinary(CheckResponseSchema, answer))

const server = new Server()
const same = (given: Buffer) => given
const check = {
  path: `/${Authorization.typeName}/Check`,
  requestStream: false,
  responseStream: false,
  requestSerialize: same,
  requestDeserialize: same,
  responseSerialize: same,
  responseDeserialize: same,
} as const
server.addService(
  { check },
  { check: (_call: unknown, callback: (error: null, answer: Buffer) => void) => callback(null, bytes) },
)
server.bindAsync(`127.0.0.1:${process.argv[2]}`, ServerCredentials.createInsecure(), (error) => {
  if (error) throw error
  process.stdout.write('listening\n')
})
