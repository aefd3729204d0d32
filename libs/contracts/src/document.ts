export * from './gen/tollward/document/v1/document_pb.ts'
