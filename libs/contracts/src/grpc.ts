import {
  create,
  type DescMessage,
  type DescMethod,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  type DescService,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from '@bufbuild/protobuf'
import { FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt'
import {
  type ChannelCredentials,
  type ChannelOptions,
  Client,
  type ClientReadableStream,
  type ClientUnaryCall,
  type handleServerStreamingCall,
  type handleUnaryCall,
  Metadata,
  type MethodDefinition,
  type ServiceDefinition,
} from '@grpc/grpc-js'

/** What a method of a server looks like. Answers may be init objects: they are completed when they are written. */
type GrpcHandler<Method> =
  Method extends DescMethodUnary<infer Input extends DescMessage, infer Output extends DescMessage>
    ? handleUnaryCall<MessageShape<Input>, MessageInitShape<Output>>
    : Method extends DescMethodServerStreaming<infer Input extends DescMessage, infer Output extends DescMessage>
      ? handleServerStreamingCall<MessageShape<Input>, MessageInitShape<Output>>
      : never

/** The handlers of a server, by the methods' names in lower camel case. */
export type GrpcHandlers<Service extends Pick<DescService, 'method'>> = {
  [Name in keyof Service['method']]: GrpcHandler<Service['method'][Name]>
}

/** What every call may say. */
export interface GrpcCallOptions {
  /** The call fails with DEADLINE_EXCEEDED after this time. Without it a call may wait for ever. */
  timeoutMs?: number
  metadata?: Readonly<Record<string, string>>
  /** Ends the call with CANCELLED. */
  signal?: AbortSignal
}

type GrpcMethod<Method> =
  Method extends DescMethodUnary<infer Input extends DescMessage, infer Output extends DescMessage>
    ? (request: MessageInitShape<Input>, options?: GrpcCallOptions) => Promise<MessageShape<Output>>
    : Method extends DescMethodServerStreaming<infer Input extends DescMessage, infer Output extends DescMessage>
      ? (request: MessageInitShape<Input>, options?: GrpcCallOptions) => AsyncIterable<MessageShape<Output>>
      : never

/** The methods of a service as a caller uses them. A failed call throws grpc-js's ServiceError (code, details). */
export type GrpcClient<Service extends Pick<DescService, 'method'>> = Disposable & {
  [Name in keyof Service['method']]: GrpcMethod<Service['method'][Name]>
}

/** The one form of files that both @grpc/reflection reads and its types allow. */
interface ReflectedFiles {
  format: 'Protocol Buffer 3 EnumDescriptorProto'
  type: object
  fileDescriptorProtos: Buffer[]
}

/**
 * The service as grpc-js's `server.addService` wants it, with the bytes read and written by protobuf-es:
 * `server.addService(grpcDefinition(AdminService), handlers)`. Bytes that are no such message fail the call inside grpc-js.
 */
export function grpcDefinition<Service extends Pick<DescService, 'method' | 'methods' | 'typeName'>>(
  service: Service,
): ServiceDefinition<GrpcHandlers<Service>> {
  const definitions = service.methods.map((method) => [method.localName, methodDefinition(service.typeName, method)])
  return Object.fromEntries(definitions) as ServiceDefinition<GrpcHandlers<Service>>
}

/**
 * The services with every file they need, for `new ReflectionService(reflectionPackage([AdminService]))` of @grpc/reflection;
 * services that other files declare can be left out of the listing with that constructor's option `services`.
 *
 * Health needs nothing from here: `new HealthImplementation({ '': 'SERVING', [AdminService.typeName]: 'SERVING' })` of
 * grpc-health-check brings its own definition, and `addToServer(server)` adds it.
 */
export function reflectionPackage(services: readonly Pick<DescService, 'file'>[]): Record<string, ReflectedFiles> {
  const files = new Map<string, Buffer>()
  const collect = (file: DescService['file']) => {
    if (files.has(file.name)) return
    files.set(file.name, Buffer.from(toBinary(FileDescriptorProtoSchema, file.proto)))
    file.dependencies.forEach(collect)
  }
  for (const service of services) collect(service.file)
  return {
    [FileDescriptorProtoSchema.typeName]: {
      format: 'Protocol Buffer 3 EnumDescriptorProto',
      type: {},
      fileDescriptorProtos: [...files.values()],
    },
  }
}

/** Calls a service over gRPC: unary methods give a promise, server streams an async iterable. Dispose of it to close. */
export function grpcClient<Service extends Pick<DescService, 'method' | 'methods' | 'typeName'>>(
  service: Service,
  address: string,
  credentials: ChannelCredentials,
  options: ChannelOptions = {},
): GrpcClient<Service> {
  const client = new Client(address, credentials, options)
  const methods = service.methods.map((method) => {
    const definition = methodDefinition(service.typeName, method)
    return [method.localName, method.methodKind === 'unary' ? unary(client, definition) : stream(client, definition)]
  })
  return Object.assign(Object.fromEntries(methods), { [Symbol.dispose]: () => client.close() }) as GrpcClient<Service>
}

type Definition = MethodDefinition<MessageInitShape<DescMessage>, MessageShape<DescMessage>>

function methodDefinition(typeName: string, method: DescMethod): Definition {
  const { input, output, methodKind } = method
  return {
    path: `/${typeName}/${method.name}`,
    originalName: method.localName,
    requestStream: methodKind === 'client_streaming' || methodKind === 'bidi_streaming',
    responseStream: methodKind === 'server_streaming' || methodKind === 'bidi_streaming',
    requestSerialize: (request) => encode(input, request),
    requestDeserialize: (bytes) => fromBinary(input, bytes),
    responseSerialize: (response) => encode(output, response),
    responseDeserialize: (bytes) => fromBinary(output, bytes),
  }
}

/** Gives the written bytes to grpc-js as a Buffer without copying them. */
function encode(schema: DescMessage, message: MessageInitShape<DescMessage>): Buffer {
  const bytes = toBinary(schema, create(schema, message))
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

function unary(client: Client, { path, requestSerialize, responseDeserialize }: Definition) {
  return (request: MessageInitShape<DescMessage>, options: GrpcCallOptions = {}) =>
    new Promise((resolve, reject) => {
      const { metadata, deadline } = callOf(options)
      const call = client.makeUnaryRequest(
        ...([path, requestSerialize, responseDeserialize, request, metadata, deadline] as const),
        (error, response) => (error ? reject(error) : resolve(response)),
      )
      cancelOnAbort(call, options.signal)
    })
}

function stream(client: Client, { path, requestSerialize, responseDeserialize }: Definition) {
  return (request: MessageInitShape<DescMessage>, options: GrpcCallOptions = {}) => {
    const { metadata, deadline } = callOf(options)
    const call = client.makeServerStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
      request,
      metadata,
      deadline,
    )
    cancelOnAbort(call, options.signal)
    return call
  }
}

function callOf({ metadata = {}, timeoutMs }: GrpcCallOptions) {
  const sent = new Metadata()
  for (const [key, value] of Object.entries(metadata)) sent.set(key, value)
  return { metadata: sent, deadline: timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs } }
}

function cancelOnAbort(call: ClientUnaryCall | ClientReadableStream<unknown>, signal: AbortSignal | undefined): void {
  const cancel = () => call.cancel()
  if (signal?.aborted) cancel()
  signal?.addEventListener('abort', cancel, { once: true })
  call.once('status', () => signal?.removeEventListener('abort', cancel))
}
