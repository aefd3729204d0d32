export * from './gen/tollward/payment/v1/conduct_pb.ts'
export * from './gen/tollward/payment/v1/events_pb.ts'
export * from './gen/tollward/payment/v1/pass_pb.ts'
export * from './gen/tollward/payment/v1/verifier_pb.ts'
