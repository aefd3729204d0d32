export * from './gen/tollward/enforcement/v1/block_pb.ts'
