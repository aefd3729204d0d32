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
export type { Field } from './hpack.ts'
export { HttpObserver, type ObservedDirection } from './http.ts'
