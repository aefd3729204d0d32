import { EventEmitter } from 'node:events'
import type { MethodDefinition, ServiceDefinition } from '@grpc/grpc-js'
import { NOT_ONE_MESSAGE, type OpenCall, type StreamListener, type StreamMethod } from './grpc-calls.ts'
import { Status } from './grpc-messages.ts'

/*
 * Health and reflection come as libraries that add their services to a server of grpc-js. The methods of such a service are called here
 * as that server would call them, as far as these two need it.
 */

type Definition = MethodDefinition<object, object>
type Callback = (failure: { code?: number; details?: string } | null, answer?: object | null) => void
type Handler = (call: LibraryCall, callback: Callback) => void

/** What the methods of a library see of a call. */
class LibraryCall extends EventEmitter {
  request: object | undefined
  readonly #call: OpenCall
  readonly #definition: Definition

  constructor(call: OpenCall, definition: Definition) {
    super()
    this.#call = call
    this.#definition = definition
  }

  write(answer: object): void {
    this.#call.write(this.#definition.responseSerialize(answer))
  }

  end(): void {
    this.#call.end()
  }

  readonly answer: Callback = (failure, answer) => {
    if (answer && !failure) this.write(answer)
    this.#call.end(failure ? { code: failure.code ?? Status.unknown, message: failure.details ?? '' } : undefined)
  }
}

/** The methods of services that are added to what it gives to `add`. */
export function libraryMethods(
  add: (server: { addService: (service: ServiceDefinition, handlers: object) => void }) => void,
): StreamMethod[] {
  const methods: StreamMethod[] = []
  add({
    addService: (service, handlers) => {
      for (const [name, definition] of Object.entries(service)) {
        const handler = handlerOf(handlers, [name, definition.originalName ?? name])
        methods.push({
          path: definition.path,
          open: (call) => listening(new LibraryCall(call, definition), definition, handler, call),
        })
      }
    },
  })
  return methods
}

function handlerOf(handlers: object, names: readonly string[]): Handler {
  const [, handler] = Object.entries(handlers).find(([name]) => names.includes(name)) ?? []
  if (typeof handler !== 'function') throw new TypeError(`no method ${names.join(', ')} among those of the service`)
  return (call, callback) => handler(call, callback)
}

function listening(seen: LibraryCall, definition: Definition, handler: Handler, call: OpenCall): StreamListener {
  if (definition.requestStream) handler(seen, seen.answer)
  return {
    message: (bytes: Uint8Array) => {
      const request = read(definition, bytes)
      if (!request) call.end({ code: Status.internal, message: 'The message is none of this method.' })
      else if (definition.requestStream) seen.emit('data', request)
      else if (seen.request) call.end(NOT_ONE_MESSAGE)
      else seen.request = request
    },
    end: () => {
      if (definition.requestStream) seen.emit('end')
      else if (seen.request) handler(seen, seen.answer)
      else call.end(NOT_ONE_MESSAGE)
    },
    closed: () => void seen.emit('cancelled'),
  }
}

function read({ requestDeserialize }: Definition, bytes: Uint8Array): object | undefined {
  try {
    return requestDeserialize(Buffer.from(bytes))
  } catch {
    // What the client sent is no such message: the caller says so.
    return undefined
  }
}
