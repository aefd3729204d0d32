export * from './gen/tollward/sensor/v1/call_pb.ts'
export * from './gen/tollward/sensor/v1/flow_pb.ts'
