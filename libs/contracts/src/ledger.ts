export * from './gen/tollward/ledger/v1/entry_pb.ts'
