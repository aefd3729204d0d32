export * from './gen/tollward/token/v1/events_pb.ts'
export * from './gen/tollward/token/v1/introspector_pb.ts'
export * from './gen/tollward/token/v1/issuer_pb.ts'
export * from './gen/tollward/token/v1/stored_pb.ts'
