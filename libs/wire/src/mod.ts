export {
  CLIENT_PREFACE,
  ErrorCode,
  FRAME_BYTES,
  FRAME_HEADER_BYTES,
  FrameFlag,
  FrameReader,
  FrameType,
  INTEGER_31_MAX,
  type OnFrame,
  Setting,
  unpadded,
  WINDOW_BYTES,
  writeFrameHeader,
} from './frames.ts'
export {
  encodeFields,
  type Field,
  type FieldBlock,
  HPACK_TABLE_BYTES,
  HpackDecoder,
  type HpackDecoderOptions,
  NO_TABLE,
  UNKNOWN_FIELD,
} from './hpack.ts'
export type { Http2Request } from './http2-fields.ts'
export {
  type Http2Events,
  type Http2Limits,
  type Http2Listener,
  Http2ServerConnection,
  type Http2Stream,
} from './http2-server.ts'
export { OutputBuffers } from './output.ts'
