export { ErrorCode } from './frames.ts'
export { encodeFields, type Field } from './hpack.ts'
export type { Http2Request } from './http2-fields.ts'
export {
  type Http2Events,
  type Http2Fault,
  type Http2Limits,
  Http2ServerConnection,
} from './http2-server.ts'
export type { Http2Listener, Http2Stream } from './http2-stream.ts'
export { OutputBuffers } from './output.ts'
