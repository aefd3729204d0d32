import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create, createFileRegistry, fromBinary, toBinary } from '@bufbuild/protobuf'
import { type FileDescriptorProto, FileDescriptorProtoSchema, FileDescriptorSetSchema } from '@bufbuild/protobuf/wkt'
import {
  Client,
  credentials,
  makeClientConstructor,
  Server,
  ServerCredentials,
  type ServiceDefinition,
  status,
} from '@grpc/grpc-js'
import { ReflectionService } from '@grpc/reflection'
import { HealthImplementation, service as healthDefinition } from 'grpc-health-check'
import { AdminService, type ApplyRequest, Change, ServiceState } from './admin.ts'
import { type GrpcHandlers, grpcClient, grpcDefinition, reflectionPackage } from './grpc.ts'
import { FlowSchema } from './sensor.ts'

const PATIENCE_MS = 5000
const BYTES_OF_A_FLOW = Uint8Array.from({ length: 16 }, (_, index) => index)

const reflection = new ReflectionService(reflectionPackage([AdminService]))

/** A server of two methods, a reflection and a health service. The others stay unimplemented. */
async function startServer(handlers: Partial<GrpcHandlers<typeof AdminService>>) {
  const server = new Server()
  server.addService(grpcDefinition(AdminService), handlers as GrpcHandlers<typeof AdminService>)
  reflection.addToServer(server)
  new HealthImplementation({ '': 'SERVING', [AdminService.typeName]: 'SERVING' }).addToServer(server)
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    )
  })
  const address = `127.0.0.1:${port}`
  const client = grpcClient(AdminService, address, credentials.createInsecure())
  return {
    address,
    client,
    [Symbol.dispose]() {
      client[Symbol.dispose]()
      server.forceShutdown()
    },
  }
}

test('a unary call carries its message both ways, and the answer may be an init object', async () => {
  const asked: ApplyRequest[] = []
  using running = await startServer({
    apply: (call, callback) => {
      asked.push(call.request)
      assert.deepEqual(call.metadata.get('authorization'), ['Bearer t'])
      callback(null, { applied: [{ kind: 'Plan', name: 'orders', change: Change.CREATED }] })
    },
  })
  const answer = await running.client.apply(
    { yaml: 'kind: Plan\n', fileName: 'plan.yaml' },
    { timeoutMs: PATIENCE_MS, metadata: { authorization: 'Bearer t' } },
  )
  assert.deepEqual([asked[0]?.yaml, asked[0]?.fileName], ['kind: Plan\n', 'plan.yaml'])
  assert.deepEqual([answer.applied[0]?.name, answer.applied[0]?.change], ['orders', Change.CREATED])
})

test('a server stream carries 64-bit numbers and bytes unchanged, and ends with the stream', async () => {
  using running = await startServer({
    watchFlows: (call) => {
      for (let sequence = 1n; sequence <= 3n; sequence++) {
        const flow = create(FlowSchema, { source: BYTES_OF_A_FLOW, packets: 2n ** 63n + sequence })
        call.write({ batch: { node: call.request.node, sequence, flows: [flow] } })
      }
      call.end()
    },
  })
  const batches = []
  for await (const { batch } of running.client.watchFlows({ node: 'n1' }, { timeoutMs: PATIENCE_MS }))
    batches.push(batch)
  assert.deepEqual(
    batches.map((batch) => [batch?.node, batch?.sequence, batch?.flows[0]?.packets]),
    [1n, 2n, 3n].map((sequence) => ['n1', sequence, 2n ** 63n + sequence]),
  )
  assert.deepEqual(Uint8Array.from(batches[0]?.flows[0]?.source ?? []), BYTES_OF_A_FLOW)
})

test('a deadline and an aborted signal end a call that is never answered', async () => {
  using running = await startServer({ getStatus: () => undefined, watchFlows: () => undefined })
  await assert.rejects(running.client.getStatus({}, { timeoutMs: 50 }), { code: status.DEADLINE_EXCEEDED })
  await assert.rejects(running.client.getStatus({}, { signal: AbortSignal.timeout(20) }), { code: status.CANCELLED })
  await assert.rejects(
    async () => {
      for await (const _ of running.client.watchFlows({}, { signal: AbortSignal.abort() }))
        assert.fail('nothing was sent')
    },
    { code: status.CANCELLED },
  )
})

test('bytes that are no such message are refused, and the next call is served', async () => {
  using running = await startServer({
    getStatus: (_call, callback) => callback(null, { services: [{ name: 'a', state: ServiceState.READY }] }),
  })
  using raw = Object.assign(new Client(running.address, credentials.createInsecure()), {
    [Symbol.dispose](this: Client) {
      this.close()
    },
  })
  const definition = grpcDefinition(AdminService).apply
  const sent = new Promise((resolve, reject) => {
    raw.makeUnaryRequest(
      definition.path,
      (bytes: Buffer) => bytes,
      (bytes) => bytes,
      Buffer.from('0aff', 'hex'),
      (error) => (error ? reject(error) : resolve(undefined)),
    )
  })
  await assert.rejects(sent, { code: status.INTERNAL })
  assert.equal((await running.client.getStatus({}, { timeoutMs: PATIENCE_MS })).services[0]?.name, 'a')
})

test('reflection lists the service, and its files are enough to build the service again', async () => {
  using running = await startServer({})
  assert.ok((await reflect(running.address, { listServices: '*' })).includes(AdminService.typeName))
  const files = await reflectedFiles(running.address, AdminService.typeName)
  const registry = createFileRegistry(create(FileDescriptorSetSchema, { file: files }))
  const rebuilt = registry.getService(AdminService.typeName)
  assert.deepEqual(
    rebuilt?.methods.map(({ name, input, output }) => [name, input.typeName, output.typeName]),
    AdminService.methods.map(({ name, input, output }) => [name, input.typeName, output.typeName]),
  )
  const bytes = toBinary(FlowSchema, create(FlowSchema, { packets: 5n }))
  const flow = registry.getMessage(FlowSchema.typeName)
  assert.ok(flow)
  assert.equal((fromBinary(flow, bytes) as unknown as { packets: bigint }).packets, 5n)
})

test('health answers for the service by its name', async () => {
  using running = await startServer({})
  const Health = makeClientConstructor(healthDefinition as unknown as ServiceDefinition, 'Health')
  const client = new Health(running.address, credentials.createInsecure())
  const answer = await new Promise((resolve, reject) => {
    client.Check?.({ service: AdminService.typeName }, (error: Error | null, value: unknown) =>
      error ? reject(error) : resolve(value),
    )
  })
  client.close()
  assert.deepEqual(answer, { status: 'SERVING' })
})

/** Asks the server's own reflection service, with the definition that @grpc/reflection brings. */
async function askReflection(address: string, request: object): Promise<ReflectionAnswer> {
  const definitions: ServiceDefinition[] = []
  reflection.addToServer({ addService: (definition) => definitions.push(definition as unknown as ServiceDefinition) })
  const [definition] = definitions
  assert.ok(definition)
  const Reflection = makeClientConstructor(definition, 'Reflection')
  const client = new Reflection(address, credentials.createInsecure())
  const call = client.ServerReflectionInfo?.({ deadline: Date.now() + PATIENCE_MS })
  call.write(request)
  call.end()
  try {
    for await (const answer of call) return answer
    throw new assert.AssertionError({ message: 'the server ended the stream without an answer' })
  } finally {
    client.close()
  }
}

interface ReflectionAnswer {
  listServicesResponse?: { service: { name: string }[] }
  fileDescriptorResponse?: { fileDescriptorProto: Uint8Array[] }
}

async function reflect(address: string, request: object): Promise<string[]> {
  const { listServicesResponse } = await askReflection(address, request)
  return listServicesResponse?.service.map(({ name }) => name) ?? []
}

/** Every file that the symbol needs. The server leaves out imports that only carry options: they are asked for by name. */
async function reflectedFiles(address: string, symbol: string): Promise<FileDescriptorProto[]> {
  const files = new Map<string, FileDescriptorProto>()
  const add = async (request: object) => {
    const { fileDescriptorResponse } = await askReflection(address, request)
    for (const bytes of fileDescriptorResponse?.fileDescriptorProto ?? []) {
      const file = fromBinary(FileDescriptorProtoSchema, Uint8Array.from(bytes))
      files.set(file.name, file)
    }
  }
  await add({ fileContainingSymbol: symbol })
  for (const file of files.values()) {
    for (const name of file.dependency) if (!files.has(name)) await add({ fileByFilename: name })
  }
  return inOrderOfImport(files)
}

function inOrderOfImport(files: ReadonlyMap<string, FileDescriptorProto>): FileDescriptorProto[] {
  const ordered = new Set<FileDescriptorProto>()
  const visit = (file: FileDescriptorProto) => {
    for (const name of file.dependency) {
      const imported = files.get(name)
      if (imported && !ordered.has(imported)) visit(imported)
    }
    ordered.add(file)
  }
  for (const file of files.values()) visit(file)
  return [...ordered]
}
