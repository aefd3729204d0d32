export * from './gen/tollward/sensor/v1/call_pb.ts'
export * from './gen/tollward/sensor/v1/captured_pb.ts'
export * from './gen/tollward/sensor/v1/flow_pb.ts'
export * from './gen/tollward/sensor/v1/state_pb.ts'
