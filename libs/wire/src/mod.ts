export {
  type ExchangeEnd,
  type ExchangeHandler,
  FIELD_BYTES_MAX,
  FIELDS_MAX,
  type LossReason,
  type ObservedBytes,
  type RequestHead,
  type ResponseHead,
} from './exchange.ts'
export { ErrorCode } from './frames.ts'
export { encodeFields, type Field } from './hpack.ts'
export { HttpObserver, type ObservedDirection } from './http.ts'
export type { Http2Request } from './http2-fields.ts'
export {
  type Http2Events,
  type Http2Fault,
  type Http2Limits,
  Http2ServerConnection,
} from './http2-server.ts'
export type { Http2Listener, Http2Stream } from './http2-stream.ts'
export { OutputBuffers } from './output.ts'
